module github.com/cohortbridge/cohortbridge/bench

go 1.26.0
