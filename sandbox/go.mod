module github.com/cohortbridge/cohortbridge/sandbox

go 1.26.0
