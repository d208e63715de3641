package registry_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/platform/auth"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/rpc"
	"github.com/cohortbridge/cohortbridge/services/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const passcode = "PASS-CODE-1234"

// world is a registry behind the real interceptors, and a CleverTap that knows
// one passcode.
type world struct {
	dir      string
	clock    atomic.Int64
	public   grpc.ClientConnInterface
	internal grpc.ClientConnInterface
	ct       *httptest.Server
	checks   atomic.Int32
	answer   func(w http.ResponseWriter, r *http.Request)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{dir: t.TempDir()}
	w.clock.Store(time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC).UnixNano())
	w.answer = func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-CleverTap-Passcode") != passcode {
			rw.WriteHeader(http.StatusUnauthorized)
			_, _ = rw.Write([]byte(`{"status":"fail","error":"Invalid Credentials","code":401}`))
			return
		}
		_, _ = rw.Write([]byte(`{"status" : "success"}`))
	}
	w.ct = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.checks.Add(1)
		if r.URL.Path != "/v1/connect" || r.URL.Query().Get("partner") == "" {
			rw.WriteHeader(http.StatusBadRequest)
			return
		}
		w.answer(rw, r)
	}))
	svc, err := registry.New(context.Background(), registry.Config{DataDir: w.dir, AllowPrivateDestinations: true, Now: func() time.Time { return time.Unix(0, w.clock.Load()) }})
	if err != nil {
		t.Fatal(err)
	}
	in := rpc.NewInProcess()
	w.internal, w.public = in.Dial(auth.InternalCredentials{Key: "internal"}), in.Dial(nil)
	if err := in.Guard(&auth.Guard{Authenticator: registry.Authenticator(registryv1.NewCredentialServiceClient(w.internal)), InternalKey: "internal", OperatorKey: "operator"}); err != nil {
		t.Fatal(err)
	}
	svc.Register(in)
	t.Cleanup(func() {
		if err := in.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if err := svc.Close(context.Background()); err != nil {
			t.Error(err)
		}
		w.ct.Close()
	})
	return w
}

func operator(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer operator")
}

func as(ctx context.Context, user, secret string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":"+secret)))
}

func (w *world) project(t *testing.T) *registryv1.CreateProjectResponse {
	t.Helper()
	p, err := registryv1.NewProjectServiceClient(w.public).CreateProject(operator(t.Context()), &registryv1.CreateProjectRequest{Project: &registryv1.Project{DisplayName: "shop"}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (w *world) account(t *testing.T, project string, role typev1.Role, expire *timestamppb.Timestamp) (user, secret, name string) {
	t.Helper()
	a, err := registryv1.NewProjectServiceClient(w.public).CreateServiceAccount(operator(t.Context()), &registryv1.CreateServiceAccountRequest{Parent: project, ServiceAccount: &registryv1.ServiceAccount{DisplayName: "Robot", Role: role, ExpireTime: expire}})
	if err != nil {
		t.Fatal(err)
	}
	return a.GetServiceAccount().GetUsername(), a.GetSecret(), a.GetServiceAccount().GetName()
}

func (w *world) connector(host, pass string) *registryv1.Connector {
	return &registryv1.Connector{DisplayName: "ct", Destination: &registryv1.Connector_Clevertap{Clevertap: &registryv1.CleverTap{AccountId: "ACC-1", Passcode: pass, Region: "in1", HostUrl: host}}}
}

func TestAProjectIsSimplifiedUnlessAskedAndStaysWhatItIs(t *testing.T) {
	w := newWorld(t)
	api := registryv1.NewProjectServiceClient(w.public)
	for asked, want := range map[typev1.IdentitySystem]typev1.IdentitySystem{
		typev1.IdentitySystem_IDENTITY_SYSTEM_UNSPECIFIED: typev1.IdentitySystem_IDENTITY_SYSTEM_SIMPLIFIED,
		typev1.IdentitySystem_IDENTITY_SYSTEM_SIMPLIFIED:  typev1.IdentitySystem_IDENTITY_SYSTEM_SIMPLIFIED,
		typev1.IdentitySystem_IDENTITY_SYSTEM_ORIGINAL:    typev1.IdentitySystem_IDENTITY_SYSTEM_ORIGINAL,
		typev1.IdentitySystem_IDENTITY_SYSTEM_LEGACY:      typev1.IdentitySystem_IDENTITY_SYSTEM_LEGACY,
	} {
		r, err := api.CreateProject(operator(t.Context()), &registryv1.CreateProjectRequest{Project: &registryv1.Project{DisplayName: "shop", IdentitySystem: asked}})
		if err != nil || r.GetProject().GetIdentitySystem() != want {
			t.Errorf("asked for %v: %v, %v", asked, r.GetProject(), err)
			continue
		}
		other := typev1.IdentitySystem_IDENTITY_SYSTEM_ORIGINAL
		if want == other {
			other = typev1.IdentitySystem_IDENTITY_SYSTEM_LEGACY
		}
		_, err = api.UpdateProject(operator(t.Context()), &registryv1.UpdateProjectRequest{Project: &registryv1.Project{Name: r.GetProject().GetName(), IdentitySystem: other}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"identity_system"}}})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v was changed to %v: %v", want, other, err)
		}
	}
}

func TestAServiceAccountWorksUntilItExpiresOrIsDeleted(t *testing.T) {
	w := newWorld(t)
	p := w.project(t).GetProject()
	api := registryv1.NewProjectServiceClient(w.public)
	user, secret, name := w.account(t, p.GetName(), typev1.Role_ROLE_CONSUMER, timestamppb.New(time.Unix(0, w.clock.Load()).Add(time.Hour)))
	get := func(secret string) error {
		_, err := api.GetProject(as(t.Context(), user, secret), &registryv1.GetProjectRequest{Name: p.GetName()})
		return err
	}
	if err := get(secret); err != nil {
		t.Fatalf("right secret: %v", err)
	}
	if err := get(secret + "x"); status.Code(err) != codes.Unauthenticated {
		t.Fatalf("wrong secret: %v, want Unauthenticated", err)
	}
	w.clock.Add(int64(time.Hour))
	if err := get(secret); status.Code(err) != codes.Unauthenticated {
		t.Fatalf("after expiry: %v, want Unauthenticated", err)
	}
	w.clock.Add(-int64(time.Hour))
	if err := get(secret); err != nil {
		t.Fatalf("before expiry again: %v", err)
	}
	if _, err := api.DeleteServiceAccount(operator(t.Context()), &registryv1.DeleteServiceAccountRequest{Name: name}); err != nil {
		t.Fatal(err)
	}
	if err := get(secret); status.Code(err) != codes.Unauthenticated {
		t.Fatalf("after delete: %v, want Unauthenticated at once", err)
	}
}

func TestNobodyDeletesTheAccountTheyUse(t *testing.T) {
	w := newWorld(t)
	p := w.project(t).GetProject()
	user, secret, name := w.account(t, p.GetName(), typev1.Role_ROLE_OWNER, nil)
	_, err := registryv1.NewProjectServiceClient(w.public).DeleteServiceAccount(as(t.Context(), user, secret), &registryv1.DeleteServiceAccountRequest{Name: name})
	if status.Code(err) != codes.FailedPrecondition {
		t.Fatalf("err = %v, want FailedPrecondition", err)
	}
}

func TestNobodyGrantsARoleAboveTheirOwn(t *testing.T) {
	w := newWorld(t)
	p := w.project(t).GetProject()
	user, secret, _ := w.account(t, p.GetName(), typev1.Role_ROLE_ADMIN, nil)
	_, err := registryv1.NewProjectServiceClient(w.public).CreateServiceAccount(as(t.Context(), user, secret), &registryv1.CreateServiceAccountRequest{Parent: p.GetName(), ServiceAccount: &registryv1.ServiceAccount{DisplayName: "x", Role: typev1.Role_ROLE_OWNER}})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "service_account.role") {
		t.Fatalf("err = %v, want InvalidArgument naming service_account.role", err)
	}
}

func TestAListShowsOnlyTheCallersProjects(t *testing.T) {
	w := newWorld(t)
	mine, _ := w.project(t).GetProject(), w.project(t)
	user, secret, _ := w.account(t, mine.GetName(), typev1.Role_ROLE_CONSUMER, nil)
	api := registryv1.NewProjectServiceClient(w.public)
	got, err := api.ListProjects(as(t.Context(), user, secret), &registryv1.ListProjectsRequest{})
	if err != nil || len(got.GetProjects()) != 1 || got.GetProjects()[0].GetName() != mine.GetName() {
		t.Fatalf("list = %v, %v; want only %s", got, err, mine.GetName())
	}
	all, err := api.ListProjects(operator(t.Context()), &registryv1.ListProjectsRequest{PageSize: 1})
	if err != nil || len(all.GetProjects()) != 1 || all.GetNextPageToken() == "" {
		t.Fatalf("operator's first page = %v, %v", all, err)
	}
}

func TestAnUpdateChangesTheMtuSettingsItNamesAndNoOthers(t *testing.T) {
	w := newWorld(t)
	name := w.project(t).GetProject().GetName()
	api := registryv1.NewProjectServiceClient(w.public)
	update := func(p *registryv1.Project, paths ...string) (*registryv1.Project, error) {
		p.Name = name
		resp, err := api.UpdateProject(operator(t.Context()), &registryv1.UpdateProjectRequest{Project: p, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}})
		return resp.GetProject(), err
	}
	all := &registryv1.MtuSettings{MatchByNameOnly: true, ByEventTime: true, ClevertapSources: []string{"ct"}, PartnerMarkers: map[string]*registryv1.MarkerValues{"braze": {Values: []string{"b"}}}}
	if p, err := update(&registryv1.Project{Mtu: all}); err != nil || !proto.Equal(p.GetMtu(), all) {
		t.Fatalf("without a mask: %v, %v", p.GetMtu(), err)
	}
	for _, path := range []string{"match_by_name_only", "by_event_time", "clevertap_sources", "partner_markers"} {
		p, err := update(&registryv1.Project{Mtu: &registryv1.MtuSettings{}}, "mtu."+path)
		want := proto.CloneOf(all)
		want.ProtoReflect().Clear(want.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(path)))
		if path == "clevertap_sources" {
			want.ClevertapSources = []string{"clevertap"} // the default
		}
		if err != nil || !proto.Equal(p.GetMtu(), want) {
			t.Errorf("%s: %v, %v; want %v", path, p.GetMtu(), err, want)
		}
		if _, err := update(&registryv1.Project{Mtu: all}, "mtu"); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := update(&registryv1.Project{DisplayName: "other", IdentitySystem: typev1.IdentitySystem_IDENTITY_SYSTEM_SIMPLIFIED}, "display_name", "identity_system"); err != nil || p.GetDisplayName() != "other" || !proto.Equal(p.GetMtu(), all) {
		t.Errorf("sent back with its own identity system: %v, %v", p, err)
	}
	if _, err := update(&registryv1.Project{IdentitySystem: typev1.IdentitySystem_IDENTITY_SYSTEM_LEGACY}, "identity_system"); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "project.identity_system") {
		t.Errorf("another identity system: %v", err)
	}
	if _, err := update(&registryv1.Project{Mtu: all}, "mtu.moon"); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "mtu.partner_markers") || strings.Contains(err.Error(), "identity_system") {
		t.Errorf("a path that does not exist: %v, want an error that names those that can be changed", err)
	}
}

func TestAConnectorSaysWhatTheConnectCheckFound(t *testing.T) {
	w := newWorld(t)
	p := w.project(t).GetProject()
	api := registryv1.NewConnectorServiceClient(w.public)
	create := func(host, pass string) *registryv1.Connector {
		t.Helper()
		resp, err := api.CreateConnector(operator(t.Context()), &registryv1.CreateConnectorRequest{Parent: p.GetName(), Connector: w.connector(host, pass)})
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetConnector()
	}
	if c := create(w.ct.URL, passcode); c.GetState() != registryv1.Connector_STATE_CONNECTED {
		t.Errorf("right passcode: %s %s", c.GetState(), c.GetStateReason())
	}
	refused := create(w.ct.URL, "wrong")
	if refused.GetState() != registryv1.Connector_STATE_REFUSED || !strings.Contains(refused.GetStateReason(), "Invalid Credentials") {
		t.Errorf("wrong passcode: %s %q, want REFUSED in CleverTap's words", refused.GetState(), refused.GetStateReason())
	}
	if c := create("http://127.0.0.1:1", passcode); c.GetState() != registryv1.Connector_STATE_UNREACHABLE {
		t.Errorf("nobody there: %s, want UNREACHABLE", c.GetState())
	}
	for what, answer := range map[string]string{"an empty 200": "", "HTML": "<html>", "200 with fail": `{"status":"fail","error":"nope"}`, "200 without status": `{}`} {
		w.answer = func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write([]byte(answer)) }
		if c := create(w.ct.URL, passcode); c.GetState() == registryv1.Connector_STATE_CONNECTED || c.GetStateReason() == "" {
			t.Errorf("%s: %s %q, want a failure with its reason", what, c.GetState(), c.GetStateReason())
		}
	}
	w.answer = func(rw http.ResponseWriter, r *http.Request) {
		_, _ = rw.Write([]byte(`{"status":"fail","error":"bad passcode ` + r.Header.Get("X-CleverTap-Passcode") + `"}`))
	}
	if c := create(w.ct.URL, passcode); strings.Contains(c.GetStateReason(), passcode) {
		t.Errorf("the passcode that CleverTap echoed is shown: %q", c.GetStateReason())
	}
}

func TestAChangedPasscodeIsCheckedAgainAndAnEmptyOneKeepsTheOld(t *testing.T) {
	w := newWorld(t)
	p := w.project(t).GetProject()
	api := registryv1.NewConnectorServiceClient(w.public)
	resp, err := api.CreateConnector(operator(t.Context()), &registryv1.CreateConnectorRequest{Parent: p.GetName(), Connector: w.connector(w.ct.URL, "wrong")})
	if err != nil {
		t.Fatal(err)
	}
	c := proto.CloneOf(resp.GetConnector())
	c.GetClevertap().Passcode = passcode
	up, err := api.UpdateConnector(operator(t.Context()), &registryv1.UpdateConnectorRequest{Connector: c, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"clevertap.passcode"}}})
	if err != nil || up.GetConnector().GetState() != registryv1.Connector_STATE_CONNECTED {
		t.Fatalf("new passcode: %v %v", up, err)
	}
	checks := w.checks.Load()
	c = proto.CloneOf(up.GetConnector())
	c.DisplayName = "renamed"
	if up, err = api.UpdateConnector(operator(t.Context()), &registryv1.UpdateConnectorRequest{Connector: c}); err != nil || up.GetConnector().GetDisplayName() != "renamed" {
		t.Fatalf("rename: %v %v", up, err)
	}
	if w.checks.Load() != checks {
		t.Error("a new name made a new check")
	}
	secret, err := registryv1.NewCredentialServiceClient(w.internal).ResolveConnector(t.Context(), &registryv1.ResolveConnectorRequest{Name: c.GetName()})
	if err != nil || secret.GetPasscode() != passcode || secret.GetConnector().GetClevertap().GetHostUrl() != w.ct.URL {
		t.Fatalf("resolved %v", err)
	}
	partial := &registryv1.Connector{Name: c.GetName(), Destination: &registryv1.Connector_Clevertap{Clevertap: &registryv1.CleverTap{Region: "us1"}}}
	if up, err = api.UpdateConnector(operator(t.Context()), &registryv1.UpdateConnectorRequest{Connector: partial}); err != nil || up.GetConnector().GetClevertap().GetRegion() != "us1" || up.GetConnector().GetDisplayName() != "renamed" {
		t.Fatalf("one field alone: %v %v", up, err)
	}
	asRead := &fieldmaskpb.FieldMask{Paths: []string{"name", "state", "check_time", "clevertap.account_id", "clevertap.region"}}
	if _, err = api.UpdateConnector(operator(t.Context()), &registryv1.UpdateConnectorRequest{Connector: up.GetConnector(), UpdateMask: asRead}); err != nil {
		t.Fatalf("sent back as it was read: %v", err)
	}
	other := proto.CloneOf(up.GetConnector())
	other.Etag, other.GetClevertap().AccountId = "", "ANOTHER"
	if _, err = api.UpdateConnector(operator(t.Context()), &registryv1.UpdateConnectorRequest{Connector: other}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "account_id") {
		t.Fatalf("another account: %v, want InvalidArgument naming account_id", err)
	}
	c.Etag = "v1"
	if _, err := api.UpdateConnector(operator(t.Context()), &registryv1.UpdateConnectorRequest{Connector: c}); status.Code(err) != codes.Aborted {
		t.Fatalf("old etag: %v, want Aborted", err)
	}
}

func TestThePasscodeIsInNoPublicAnswerAndNotOnDisk(t *testing.T) {
	w := newWorld(t)
	p := w.project(t).GetProject()
	api := registryv1.NewConnectorServiceClient(w.public)
	created, err := api.CreateConnector(operator(t.Context()), &registryv1.CreateConnectorRequest{Parent: p.GetName(), Connector: w.connector(w.ct.URL, passcode)})
	if err != nil {
		t.Fatal(err)
	}
	name := created.GetConnector().GetName()
	got, _ := api.GetConnector(operator(t.Context()), &registryv1.GetConnectorRequest{Name: name})
	list, _ := api.ListConnectors(operator(t.Context()), &registryv1.ListConnectorsRequest{Parent: p.GetName()})
	verified, _ := api.VerifyConnector(operator(t.Context()), &registryv1.VerifyConnectorRequest{Name: name})
	for _, m := range []proto.Message{created, got, list, verified} {
		if text := prototext.Format(m); strings.Contains(text, passcode) || !strings.Contains(text, "ACC-1") {
			t.Errorf("answer %s", text)
		}
	}
	err = filepath.WalkDir(w.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(passcode)) {
			t.Errorf("%s holds the passcode", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(w.dir, "keyring.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key ring: %v %v, want mode 0600", info, err)
	}
}

func TestIngestCredentialsOpenTheirProjectOnly(t *testing.T) {
	w := newWorld(t)
	created := w.project(t)
	p, other := created.GetProject(), w.project(t).GetProject()
	id := strings.TrimPrefix(p.GetName(), "projects/")
	admin, adminSecret, _ := w.account(t, p.GetName(), typev1.Role_ROLE_ADMIN, nil)
	analyst, analystSecret, _ := w.account(t, p.GetName(), typev1.Role_ROLE_ANALYST, nil)
	api := registryv1.NewCredentialServiceClient(w.internal)
	for what, tc := range map[string]struct {
		user, secret, project string
		code                  codes.Code
		reason                string
	}{
		"service account":                                     {admin, adminSecret, id, codes.OK, ""},
		"service account without project_id":                  {admin, adminSecret, "", codes.PermissionDenied, "PROJECT_ID_REQUIRED"},
		"service account with a project_id that is no number": {admin, adminSecret, "shop", codes.PermissionDenied, "PROJECT_ID_REQUIRED"},
		"service account in another project":                  {admin, adminSecret, strings.TrimPrefix(other.GetName(), "projects/"), codes.PermissionDenied, "WRONG_PROJECT"},
		"service account in no project there is":              {admin, adminSecret, "99", codes.PermissionDenied, "WRONG_PROJECT"},
		"service account without the role":                    {analyst, analystSecret, id, codes.PermissionDenied, "ROLE_REQUIRED"},
		"service account without the role, in another":        {analyst, analystSecret, "99", codes.PermissionDenied, "WRONG_PROJECT"},
		"service account with a wrong secret":                 {admin, "wrong", id, codes.Unauthenticated, "WRONG_CREDENTIAL"},
		"a wrong secret without project_id":                   {admin, "wrong", "", codes.Unauthenticated, "WRONG_CREDENTIAL"},
		"a wrong secret without the role":                     {analyst, "wrong", id, codes.Unauthenticated, "WRONG_CREDENTIAL"},
		"an unknown account without project_id":               {"nobody", "wrong", "", codes.Unauthenticated, "WRONG_CREDENTIAL"},
		"project secret":                                      {created.GetSecret(), "", "", codes.OK, ""},
		"project token":                                       {p.GetToken(), "", "", codes.OK, ""},
		"project token with another project_id":               {p.GetToken(), "", "99", codes.PermissionDenied, "WRONG_PROJECT"},
		"unknown secret":                                      {"unknown", "", "", codes.Unauthenticated, "WRONG_CREDENTIAL"},
		"unknown secret with a project_id":                    {"unknown", "", id, codes.Unauthenticated, "WRONG_CREDENTIAL"},
	} {
		resp, err := api.AuthenticateIngest(t.Context(), &registryv1.AuthenticateIngestRequest{Username: tc.user, Secret: tc.secret, ProjectId: tc.project})
		reason := ""
		if f := fault.As(rpc.FromStatus(err)); f != nil {
			reason = f.Reason
		}
		if status.Code(err) != tc.code || reason != tc.reason || (err == nil && resp.GetProject().GetName() != p.GetName()) {
			t.Errorf("%s: %v %v, want %s %s", what, resp, err, tc.code, tc.reason)
		}
	}
}

func TestAProjectSecretReadsItsProjectAndNothingElse(t *testing.T) {
	w := newWorld(t)
	created, other := w.project(t), w.project(t)
	user, _, _ := w.account(t, created.GetProject().GetName(), typev1.Role_ROLE_OWNER, nil)
	api := registryv1.NewProjectServiceClient(w.public)
	ctx := as(t.Context(), created.GetSecret(), "")
	list, err := api.ListProjects(ctx, &registryv1.ListProjectsRequest{})
	if err != nil || len(list.GetProjects()) != 1 || list.GetProjects()[0].GetName() != created.GetProject().GetName() {
		t.Fatalf("projects of a secret: %v %v", list, err)
	}
	if _, err := api.GetProject(ctx, &registryv1.GetProjectRequest{Name: created.GetProject().GetName()}); err != nil {
		t.Errorf("its project: %v", err)
	}
	if _, err := api.GetProject(ctx, &registryv1.GetProjectRequest{Name: other.GetProject().GetName()}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("another project: %v", err)
	}
	if _, err := registryv1.NewConnectorServiceClient(w.public).ListConnectors(ctx, &registryv1.ListConnectorsRequest{Parent: created.GetProject().GetName()}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("connectors: %v", err)
	}
	// The token is public, and a service account without its secret is anybody.
	for what, wrong := range map[string]string{"token": created.GetProject().GetToken(), "service account": user, "unknown": "0123456789abcdef"} {
		if _, err := api.ListProjects(as(t.Context(), wrong, ""), &registryv1.ListProjectsRequest{}); status.Code(err) != codes.Unauthenticated || strings.Contains(err.Error(), wrong) {
			t.Errorf("%s as a secret: %v", what, err)
		}
	}
}
