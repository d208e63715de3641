module github.com/cohortbridge/cohortbridge/sandbox

go 1.26.0

require go.uber.org/goleak v1.3.0

require github.com/go-json-experiment/json v1.27.2
