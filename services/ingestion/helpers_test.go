package ingestion_test

import (
	"encoding/json"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
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
