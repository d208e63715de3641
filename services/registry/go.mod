module github.com/cohortbridge/cohortbridge/services/registry

go 1.26.0
