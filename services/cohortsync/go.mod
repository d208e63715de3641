module github.com/cohortbridge/cohortbridge/services/cohortsync

go 1.26.0
