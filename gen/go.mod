module github.com/cohortbridge/cohortbridge/gen

go 1.26.0
