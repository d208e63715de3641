module github.com/cohortbridge/cohortbridge/cmd/cohortbridge

go 1.26.0
