module github.com/cohortbridge/cohortbridge/e2e

go 1.26.0
