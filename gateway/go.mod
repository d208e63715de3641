module github.com/cohortbridge/cohortbridge/gateway

go 1.26.0
