module github.com/cohortbridge/cohortbridge/services/ingestion

go 1.26.0
