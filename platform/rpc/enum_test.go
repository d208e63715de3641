package rpc_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	// All contracts, for the registry of types.
	_ "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/rpc"
)

func TestAnEnumThatIsRefusedNamesWhatIsAllowed(t *testing.T) {
	for want, m := range map[string]protoreflect.ProtoMessage{
		"by: must be one of BY_DAY, BY_SOURCE, BY_EVENT":                                                 &ingestionv1.BreakDownUsageRequest{Parent: "projects/1"},
		"role: must be one of ROLE_CONSUMER, ROLE_ANALYST, ROLE_ADMIN, ROLE_OWNER":                       &registryv1.ServiceAccount{DisplayName: "x", Role: 99},
		"unit: must be one of UNIT_MINUTE, UNIT_HOUR, UNIT_DAY, UNIT_WEEK, UNIT_MONTH":                   &typev1.RelativeWindow{Amount: 1},
		"channel: must be one of CHANNEL_PARTNER, CHANNEL_CUSTOM_LIST, CHANNEL_API_SEGMENT, or left out": &registryv1.CleverTap{AccountId: "A", Passcode: "p", Region: "eu1", Channel: 99},
	} {
		f := fault.As(rpc.Check(m))
		if f == nil || f.Public != want || f.Violations[0].Field+": "+f.Violations[0].Description != want {
			t.Errorf("%T: %v, want %s", m, f, want)
		}
	}
}

// Whatever contract comes, no caller reads of numbers in lists.
func TestEveryEnumWithRulesNamesWhatIsAllowed(t *testing.T) {
	seen := 0
	protoregistry.GlobalTypes.RangeMessages(func(mt protoreflect.MessageType) bool {
		if !strings.HasPrefix(string(mt.Descriptor().FullName()), "cohortbridge.") {
			return true
		}
		fields := mt.Descriptor().Fields()
		for i := range fields.Len() {
			fd := fields.Get(i)
			if fd.Kind() != protoreflect.EnumKind || fd.IsMap() {
				continue
			}
			m := mt.New()
			if fd.IsList() {
				m.Mutable(fd).List().Append(protoreflect.ValueOfEnum(99))
			} else {
				m.Set(fd, protoreflect.ValueOfEnum(99))
			}
			f := fault.As(rpc.Check(m.Interface()))
			if f == nil {
				continue
			}
			for _, v := range f.Violations {
				if !strings.HasPrefix(v.Field, fd.TextName()) {
					continue
				}
				seen++
				first := string(fd.Enum().Values().Get(1).Name())
				if !strings.HasPrefix(v.Description, "must be one of ") || !strings.Contains(v.Description, first) || strings.Contains(v.Description, "UNSPECIFIED") {
					t.Errorf("%s: %s", fd.FullName(), v.Description)
				}
			}
		}
		return true
	})
	if seen < 10 {
		t.Errorf("%d enums with rules seen", seen)
	}
}

func TestARefusedEnumReachesTheCallerByName(t *testing.T) {
	client := serve(t, &ends{do: func() error { return nil }})
	_, err := client.CreateServiceAccount(t.Context(), &registryv1.CreateServiceAccountRequest{Parent: "projects/1", ServiceAccount: &registryv1.ServiceAccount{DisplayName: "x"}})
	if s := status.Convert(err); s.Code() != codes.InvalidArgument || !strings.HasPrefix(s.Message(), "service_account.role: must be one of ROLE_") {
		t.Errorf("answered %v", err)
	}
}
