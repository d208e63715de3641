package rpc_test

import (
	"strings"
	"testing"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/rpc"
)

func TestATextThatIsRefusedIsToldItsFormInWords(t *testing.T) {
	for want, m := range map[string]proto.Message{
		"month: must be a month as yyyy-mm": &ingestionv1.GetUsageRequest{Parent: "projects/1", Month: "2026-13"},
		"name: must be projects/{project}/syncs/{sync}/runs/{run}, with numbers, e.g. projects/1/syncs/1/runs/1": &cohortsyncv1.GetRunRequest{Name: "runs/7"},
		"cohort: must be projects/{project}/cohorts/{cohort}, with numbers, e.g. projects/1/cohorts/1, or empty": &cohortsyncv1.PreviewCohortRequest{Parent: "projects/1", Cohort: "x"},
	} {
		if f := fault.As(rpc.Check(m)); f == nil || f.Public != want {
			t.Errorf("%T: %v, want %s", m, f, want)
		}
	}
}

// No caller has to read a regular expression.
func TestEveryPatternOfTheContractsIsSaidInWords(t *testing.T) {
	seen := 0
	check := func(name protoreflect.FullName, s *validate.StringRules) {
		if p := s.GetPattern(); p != "" {
			seen++
			if rpc.PatternRule(p) == "" {
				t.Errorf("%s: no words for %s", name, p)
			}
		}
	}
	protoregistry.GlobalTypes.RangeMessages(func(mt protoreflect.MessageType) bool {
		if !strings.HasPrefix(string(mt.Descriptor().FullName()), "cohortbridge.") {
			return true
		}
		fields := mt.Descriptor().Fields()
		for i := range fields.Len() {
			rules, _ := proto.GetExtension(fields.Get(i).Options(), validate.E_Field).(*validate.FieldRules)
			name := fields.Get(i).FullName()
			check(name, rules.GetString())
			check(name, rules.GetRepeated().GetItems().GetString())
			check(name, rules.GetMap().GetKeys().GetString())
			check(name, rules.GetMap().GetValues().GetString())
		}
		return true
	})
	if seen < 20 {
		t.Errorf("only %d patterns were found", seen)
	}
}
