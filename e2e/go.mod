module github.com/cohortbridge/cohortbridge/e2e

go 1.26.0

require (
	github.com/cohortbridge/cohortbridge/gen v0.0.0
	github.com/cohortbridge/cohortbridge/sandbox v0.0.0
	github.com/mixpanel/mixpanel-go v1.2.1
	go.opentelemetry.io/proto/otlp v1.11.1
	google.golang.org/genproto/googleapis/rpc v0.0.0-20261019180522-ce908d29299b
	google.golang.org/grpc v1.85.0
	google.golang.org/protobuf v1.36.12
)

require (
	buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go v1.36.12-20260825204119-511051f7f437.2 // indirect
	github.com/go-json-experiment/json v1.27.2 // indirect
	github.com/grpc-ecosystem/grpc-gateway/v2 v2.33.0 // indirect
	golang.org/x/net v0.61.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	google.golang.org/genproto/googleapis/api v0.0.0-20261104224025-d1e00e9f33ab // indirect
)

replace (
	github.com/cohortbridge/cohortbridge/gen => ../gen
	github.com/cohortbridge/cohortbridge/sandbox => ../sandbox
)
