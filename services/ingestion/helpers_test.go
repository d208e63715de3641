package ingestion_test

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
)

func mustDecode(t testing.TB, b []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
}

func typed(name string, at time.Time, id, insert string) *ingestionv1.Event {
	return &ingestionv1.Event{Event: name, Time: timestamppb.New(at), DistinctId: id, InsertId: insert, Properties: &structpb.Struct{}}
}

// violation is the field that an Invalid fault names first.
func violation(err error) string {
	if f := fault.As(err); f != nil && f.Code == fault.Invalid && len(f.Violations) > 0 {
		return f.Violations[0].Field
	}
	return ""
}

// nullStream is a server stream that drops what is sent.
type nullStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *nullStream) Context() context.Context                     { return s.ctx }
func (*nullStream) Send(*ingestionv1.EvaluateLeavesResponse) error { return nil }
