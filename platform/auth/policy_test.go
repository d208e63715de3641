package auth_test

import (
	"context"
	"encoding/base64"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	_ "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	_ "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	_ "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/platform/auth"
	"github.com/cohortbridge/cohortbridge/platform/fault"
)

// methods are all RPCs of our contracts.
func methods(t *testing.T) map[string]protoreflect.MethodDescriptor {
	t.Helper()
	out := map[string]protoreflect.MethodDescriptor{}
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			if !strings.HasPrefix(string(s.FullName()), "cohortbridge.") {
				continue
			}
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				out["/"+string(s.FullName())+"/"+string(m.Name())] = m
			}
		}
		return true
	})
	if len(out) < 40 {
		t.Fatalf("only %d RPCs found", len(out))
	}
	return out
}

func TestEveryRPCIsInThePolicyAndNothingElseOfOurs(t *testing.T) {
	all := methods(t)
	for m := range all {
		if _, ok := auth.Policy[m]; !ok {
			t.Errorf("%s is in no policy", m)
		}
	}
	for m := range auth.Policy {
		if _, ok := all[m]; !ok && strings.HasPrefix(m, "/cohortbridge.") {
			t.Errorf("the policy names %s, which does not exist", m)
		}
	}
}

// request is a message of the RPC that is about projects/7.
func request(m protoreflect.MethodDescriptor) proto.Message {
	msg := dynamicpb.NewMessage(m.Input())
	fields := m.Input().Fields()
	for _, f := range []protoreflect.Name{"parent", "name"} {
		if fd := fields.ByName(f); fd != nil && fd.Kind() == protoreflect.StringKind {
			msg.Set(fd, protoreflect.ValueOfString("projects/7/x/1"))
			return msg
		}
	}
	for i := range fields.Len() {
		fd := fields.Get(i)
		if fd.Kind() == protoreflect.MessageKind && !fd.IsList() && !fd.IsMap() && fd.Message().Fields().ByName("name") != nil {
			sub := dynamicpb.NewMessage(fd.Message())
			sub.Set(fd.Message().Fields().ByName("name"), protoreflect.ValueOfString("projects/7/x/1"))
			msg.Set(fd, protoreflect.ValueOfMessage(sub))
			return msg
		}
	}
	return msg
}

func basic(user string) context.Context {
	return metadata.NewIncomingContext(context.Background(), metadata.Pairs("authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":s"))))
}

// guard knows an account per role in project 7, and one with a role elsewhere.
var guard = &auth.Guard{InternalKey: "internal-key", OperatorKey: "operator-key", Authenticator: auth.AuthenticatorFunc(func(_ context.Context, user, _ string) (*auth.Principal, error) {
	if user == "stranger" {
		return &auth.Principal{Name: user, Roles: map[string]typev1.Role{"projects/77": typev1.Role_ROLE_OWNER}}, nil
	}
	role, ok := typev1.Role_value["ROLE_"+user]
	if !ok {
		return nil, fault.New(fault.Unauthenticated, "WRONG_CREDENTIAL", "wrong")
	}
	return &auth.Principal{Name: user, Roles: map[string]typev1.Role{"projects/7": typev1.Role(role)}}, nil
})}

func TestEachRPCOpensForItsLeastRoleAndClosesBelowIt(t *testing.T) {
	roles := []typev1.Role{typev1.Role_ROLE_CONSUMER, typev1.Role_ROLE_ANALYST, typev1.Role_ROLE_ADMIN, typev1.Role_ROLE_OWNER}
	all := methods(t)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		least, byRole := auth.Policy[name].LeastRole()
		if !byRole {
			continue
		}
		for _, role := range roles {
			_, err := guard.Authorize(basic(strings.TrimPrefix(role.String(), "ROLE_")), name, request(all[name]))
			if want := role >= least; (err == nil) != want {
				t.Errorf("%s as %s: err = %v, allowed should be %v", name, role, err, want)
			}
		}
		if _, err := guard.Authorize(basic("stranger"), name, request(all[name])); !fault.Is(err, fault.Denied) {
			t.Errorf("%s with a role in another project only: err = %v, want denied", name, err)
		}
	}
}

func TestInternalAndOperatorRPCsAreClosedToEveryRole(t *testing.T) {
	all := methods(t)
	for name, m := range all {
		access := auth.Policy[name]
		if access != auth.Internal && access != auth.Operator {
			continue
		}
		if _, err := guard.Authorize(basic("OWNER"), name, request(m)); !fault.Is(err, fault.Denied) {
			t.Errorf("%s as OWNER: err = %v, want denied", name, err)
		}
		internal := metadata.NewIncomingContext(context.Background(), metadata.Pairs(auth.InternalKeyHeader, "internal-key"))
		if _, err := guard.Authorize(internal, name, request(m)); err != nil {
			t.Errorf("%s as internal: %v", name, err)
		}
	}
}

func TestCredentialsAreRefusedWithoutRepeatingThem(t *testing.T) {
	const method = "/cohortbridge.registry.v1.ProjectService/ListProjects"
	for name, md := range map[string]metadata.MD{
		"none":               {},
		"wrong bearer":       metadata.Pairs("authorization", "Bearer hunter2"),
		"wrong internal key": metadata.Pairs(auth.InternalKeyHeader, "hunter2"),
		"basic not base64":   metadata.Pairs("authorization", "Basic hunter2:hunter2"),
		"unknown user":       metadata.Pairs("authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("hunter2:hunter2"))),
	} {
		_, err := guard.Authorize(metadata.NewIncomingContext(context.Background(), md), method, nil)
		if !fault.Is(err, fault.Unauthenticated) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: err = %v, want unauthenticated and without the credential", name, err)
		}
	}
}

func TestAnUnknownMethodIsRefused(t *testing.T) {
	ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs(auth.InternalKeyHeader, "internal-key"))
	if _, err := guard.Authorize(ctx, "/cohortbridge.registry.v1.ProjectService/DropEverything", nil); !fault.Is(err, fault.Denied) {
		t.Fatalf("err = %v, want denied", err)
	}
}

func TestAProjectSecretOpensMixpanelsReadAPIsOfItsProjectOnly(t *testing.T) {
	secret := &auth.Guard{Authenticator: auth.AuthenticatorFunc(func(_ context.Context, user, secret string) (*auth.Principal, error) {
		if user != "hush" || secret != "" {
			return nil, fault.New(fault.Unauthenticated, "WRONG_CREDENTIAL", "wrong")
		}
		return &auth.Principal{Name: "projects/7", ProjectSecret: true, Roles: map[string]typev1.Role{"projects/7": typev1.Role_ROLE_CONSUMER}}, nil
	})}
	open := map[string]bool{}
	for _, m := range []string{"registry.v1.ProjectService/GetProject", "registry.v1.ProjectService/ListProjects", "cohortsync.v1.CohortService/ListCohorts",
		"cohortsync.v1.CohortService/GetMemberSet", "ingestion.v1.DataService/ExportEvents", "ingestion.v1.DataService/QueryProfiles"} {
		open["/cohortbridge."+m] = true
	}
	as := func(text string) context.Context {
		return metadata.NewIncomingContext(context.Background(), metadata.Pairs("authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(text))))
	}
	for name, m := range methods(t) {
		if access := auth.Policy[name]; access == auth.Public {
			continue
		}
		if _, err := secret.Authorize(as("hush:"), name, request(m)); (err == nil) != open[name] || err != nil && !fault.Is(err, fault.Denied) {
			t.Errorf("%s with a project secret: %v", name, err)
		}
	}
	export := "/cohortbridge.ingestion.v1.DataService/ExportEvents"
	other := request(methods(t)[export]).ProtoReflect()
	other.Set(other.Descriptor().Fields().ByName("parent"), protoreflect.ValueOfString("projects/8"))
	if _, err := secret.Authorize(as("hush:"), export, other.Interface()); !fault.Is(err, fault.Denied) {
		t.Errorf("another project: %v", err)
	}
	literal := metadata.NewIncomingContext(context.Background(), metadata.Pairs("authorization", "Basic hush:"))
	if p, err := secret.Authorize(literal, export, request(methods(t)[export])); err != nil || !auth.FromContext(p).ProjectSecret {
		t.Errorf("literally: %v", err)
	}
}
