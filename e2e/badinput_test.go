package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/sandbox"
)

// refused checks a gRPC error: its code, and the field it names, if any.
func refused(t *testing.T, what string, err error, code codes.Code, field string) {
	t.Helper()
	s := status.Convert(err)
	if s.Code() != code {
		t.Errorf("%s: %v, want %s", what, err, code)
		return
	}
	reason := ""
	var fields []string
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			reason = d.GetReason()
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				fields = append(fields, v.GetField())
				if v.GetField() == field && v.GetDescription() == "" {
					t.Errorf("%s: %s has no description", what, field)
				}
			}
		}
	}
	if reason == "" {
		t.Errorf("%s: no reason in %v", what, err)
	}
	if field != "" && !strings.Contains(strings.Join(fields, " "), field) {
		t.Errorf("%s: names %v, want %s (%v)", what, fields, field, err)
	}
}

// refusedREST checks the same over REST.
func refusedREST(t *testing.T, what string, a *harness.Answer, httpStatus int, mentions string) {
	t.Helper()
	if a.Status != httpStatus {
		t.Errorf("%s over REST: HTTP %d, want %d: %s", what, a.Status, httpStatus, a.Body)
		return
	}
	m := a.JSON(t)
	if _, ok := m["code"]; !ok {
		t.Errorf("%s over REST: no code in %s", what, a.Body)
	}
	if !strings.Contains(string(a.Body), mentions) {
		t.Errorf("%s over REST: %s does not mention %q", what, a.Body, mentions)
	}
}

func TestBadInputIsRefusedByNameAndChangesNothing(t *testing.T) {
	p := harness.Standalone(t, t.TempDir(), "--sandbox-addr", "127.0.0.1:0")
	c := p.Client(t)
	ctx := t.Context()
	connector := func(change func(*registryv1.CleverTap)) *registryv1.CreateConnectorRequest {
		ct := &registryv1.CleverTap{AccountId: sandbox.DefaultAccountID, Passcode: sandbox.DefaultPasscode, Region: "eu1", HostUrl: "http://" + p.Creds.SandboxAddr}
		change(ct)
		return &registryv1.CreateConnectorRequest{Parent: c.Project, Connector: &registryv1.Connector{DisplayName: "x", Destination: &registryv1.Connector_Clevertap{Clevertap: ct}}}
	}

	_, err := c.Connectors().CreateConnector(ctx, connector(func(ct *registryv1.CleverTap) { ct.Region = "mars1" }))
	refused(t, "unknown region", err, codes.InvalidArgument, "connector.clevertap.region")
	refusedREST(t, "unknown region", c.MustDo(t, "POST", "/v1/"+c.Project+"/connectors", []byte(`{"display_name":"x","clevertap":{"account_id":"A","passcode":"p","region":"mars1"}}`), harness.JSONHead), 400, "region")
	_, err = c.Connectors().CreateConnector(ctx, connector(func(ct *registryv1.CleverTap) { ct.Passcode = "" }))
	refused(t, "no passcode", err, codes.InvalidArgument, "connector.clevertap.passcode")
	_, err = c.Connectors().CreateConnector(ctx, connector(func(ct *registryv1.CleverTap) { ct.HostUrl = "ftp://x" }))
	refused(t, "host of another scheme", err, codes.InvalidArgument, "connector.clevertap.host_url")

	badLeaf := harness.PropertyIs("plan", "pro")
	badLeaf.GetProperty().GetFilter().Type = 99
	tree := &typev1.Expression{Node: &typev1.Expression_AllOf{AllOf: &typev1.ExpressionList{Operands: []*typev1.Expression{harness.PropertyIs("a", "b"), badLeaf}}}}
	_, err = c.Cohorts().CreateCohort(ctx, &cohortsyncv1.CreateCohortRequest{Parent: c.Project, Cohort: &cohortsyncv1.Cohort{DisplayName: "x", Definition: tree}})
	refused(t, "unknown property type", err, codes.InvalidArgument, "cohort.definition.all_of.operands[1].property.filter.type")
	refusedREST(t, "unknown property type", c.MustDo(t, "POST", "/v1/"+c.Project+"/cohorts", []byte(`{"display_name":"x","definition":{"property":{"filter":{"property":"plan","type":"VALUE_TYPE_COLOUR","operator":"PROPERTY_OPERATOR_IS_SET"}}}}`), harness.JSONHead), 400, "type")
	_, err = c.Cohorts().CreateCohort(ctx, &cohortsyncv1.CreateCohortRequest{Parent: c.Project, Cohort: &cohortsyncv1.Cohort{DisplayName: "x"}})
	refused(t, "no definition", err, codes.InvalidArgument, "cohort.definition")

	_, err = c.Syncs().RunSync(ctx, &cohortsyncv1.RunSyncRequest{Name: c.Project + "/syncs/4711"})
	refused(t, "unknown sync", err, codes.NotFound, "")
	refusedREST(t, "unknown sync", c.MustDo(t, "POST", "/v1/"+c.Project+"/syncs/4711:run", []byte(`{}`), harness.JSONHead), 404, "4711")
	_, err = c.Syncs().GetSync(ctx, &cohortsyncv1.GetSyncRequest{Name: c.Project + "/syncs/four"})
	refused(t, "malformed name", err, codes.InvalidArgument, "name")
	_, err = c.Syncs().CreateSync(ctx, &cohortsyncv1.CreateSyncRequest{Parent: c.Project, Sync: &cohortsyncv1.Sync{Cohort: c.Project + "/cohorts/99", Connector: c.Project + "/connectors/99", Mode: cohortsyncv1.Sync_MODE_ONE_TIME}})
	refused(t, "sync of an unknown cohort", err, codes.NotFound, "")

	refusedREST(t, "malformed JSON", c.MustDo(t, "POST", "/v1/"+c.Project+"/cohorts", []byte(`{"display_name":`), harness.JSONHead), 400, "")
	refusedREST(t, "a wrong type", c.MustDo(t, "POST", "/v1/"+c.Project+"/cohorts", []byte(`{"display_name":7}`), harness.JSONHead), 400, "display_name")
	refusedREST(t, "an enum value that is no such thing", c.MustDo(t, "POST", "/v1/"+c.Project+"/syncs", []byte(`{"mode":"someone@example.org"}`), harness.JSONHead), 400, "mode")
	refusedREST(t, "a misspelt field", c.MustDo(t, "POST", "/v1/"+c.Project+"/cohorts", []byte(`{"dislpay_name":"x"}`), harness.JSONHead), 400, "dislpay_name")

	_, err = c.Cohorts().ListCohorts(ctx, &cohortsyncv1.ListCohortsRequest{Parent: "projects/999"})
	refused(t, "unknown project", err, codes.PermissionDenied, "")
	refusedREST(t, "unknown project", c.MustDo(t, "GET", "/v1/projects/999/cohorts", nil, nil), 403, "projects/999")
	wrong := harness.Connect(t, func() harness.Credentials { k := p.Creds; k.ServiceSecret = "hunter2-wrong"; return k }())
	harness.Secret("wrong secret", "hunter2-wrong")
	_, err = wrong.Cohorts().ListCohorts(ctx, &cohortsyncv1.ListCohortsRequest{Parent: c.Project})
	refused(t, "wrong secret", err, codes.Unauthenticated, "")
	refusedREST(t, "wrong secret", wrong.MustDo(t, "GET", "/v1/"+c.Project+"/cohorts", nil, nil), 401, "")

	for what, list := range map[string]func() (int, error){
		"connectors": func() (int, error) {
			r, err := c.Connectors().ListConnectors(ctx, &registryv1.ListConnectorsRequest{Parent: c.Project})
			return len(r.GetConnectors()), err
		},
		"cohorts": func() (int, error) {
			r, err := c.Cohorts().ListCohorts(ctx, &cohortsyncv1.ListCohortsRequest{Parent: c.Project})
			return len(r.GetCohorts()), err
		},
		"syncs": func() (int, error) {
			r, err := c.Syncs().ListSyncs(ctx, &cohortsyncv1.ListSyncsRequest{Parent: c.Project})
			return len(r.GetSyncs()), err
		},
	} {
		if n, err := list(); n != 0 || err != nil {
			t.Errorf("refused requests left %d %s (%v)", n, what, err)
		}
	}
}

func TestAWrongPasscodeShowsCleverTapsWordsAndNotThePasscode(t *testing.T) {
	p := harness.Standalone(t, t.TempDir(), "--sandbox-addr", "127.0.0.1:0")
	c := p.Client(t)
	harness.Secret("wrong passcode", "WRONG-PASS-CODE")
	resp, err := c.Connectors().CreateConnector(t.Context(), &registryv1.CreateConnectorRequest{Parent: c.Project, Connector: &registryv1.Connector{DisplayName: "x", Destination: &registryv1.Connector_Clevertap{Clevertap: &registryv1.CleverTap{
		AccountId: sandbox.DefaultAccountID, Passcode: "WRONG-PASS-CODE", Region: "eu1", HostUrl: "http://" + p.Creds.SandboxAddr,
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	if cn := resp.GetConnector(); cn.GetState() != registryv1.Connector_STATE_REFUSED || !strings.Contains(cn.GetStateReason(), "Invalid Credentials") {
		t.Fatalf("state %s %q, want REFUSED with CleverTap's words", cn.GetState(), cn.GetStateReason())
	}
	// A run pauses the sync with the same words.
	c.People(t, "u", 0, 3, "plan", "pro")
	cohort := c.Cohort(t, "Paused", harness.PropertyIs("plan", "pro"))
	sync, run := c.Sync(t, cohort, resp.GetConnector().GetName(), cohortsyncv1.Sync_MODE_DYNAMIC)
	r, err := c.Watch(t.Context(), run)
	if err != nil || r.GetState() != cohortsyncv1.Run_STATE_FAILED {
		t.Fatalf("run: %v %v, want FAILED", r, err)
	}
	got, err := c.Syncs().GetSync(t.Context(), &cohortsyncv1.GetSyncRequest{Name: sync})
	if err != nil || got.GetSync().GetState() != cohortsyncv1.Sync_STATE_PAUSED || !strings.Contains(got.GetSync().GetPause().GetText(), "Invalid Credentials") {
		t.Fatalf("sync: %v %v, want PAUSED with CleverTap's words", got, err)
	}
}

func zipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, _ := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestBadImportsAreRefusedInMixpanelsShapesAndStoreNothing(t *testing.T) {
	c := harness.Standalone(t, t.TempDir()).Client(t)
	path := "/import?strict=1&project_id=" + c.Creds.ProjectID
	bomb := zipped(t, append(append([]byte(`[{"event":"e","properties":{"x":"`), bytes.Repeat([]byte("a"), 40<<20)...), []byte(`"}}]`)...))
	for _, tc := range []struct {
		what, path, body string
		head             map[string]string
		status           int
		mentions         string
	}{
		{"malformed JSON", path, `[{"event":`, harness.JSONHead, 400, "num_records_imported"},
		{"not an array of objects", path, `[1,2]`, harness.JSONHead, 400, ""},
		{"event of a wrong type", path, `[{"event":5,"properties":{"time":1700000000,"distinct_id":"u","$insert_id":"a"}}]`, harness.JSONHead, 400, "event"},
		{"time of a wrong type", path, `[{"event":"e","properties":{"time":{},"distinct_id":"u","$insert_id":"a"}}]`, harness.JSONHead, 400, "properties.time"},
		{"unknown project", "/import?strict=1&project_id=999", `[]`, harness.JSONHead, 401, ""},
		{"zip bomb", path, string(bomb), map[string]string{"Content-Type": "application/json", "Content-Encoding": "gzip"}, 413, ""},
		{"oversized body", path, `[{"event":"e","properties":{"x":"` + strings.Repeat("a", 20<<20) + `"}}]`, harness.JSONHead, 413, ""},
		{"truncated gzip", path, string(zipped(t, []byte(`[]`))[:12]), map[string]string{"Content-Type": "application/json", "Content-Encoding": "gzip"}, 400, ""},
		{"unknown encoding", path, `[]`, map[string]string{"Content-Type": "application/json", "Content-Encoding": "zstd"}, 415, ""},
	} {
		a := c.MustDo(t, http.MethodPost, tc.path, []byte(tc.body), tc.head)
		if a.Status != tc.status || !strings.Contains(string(a.Body), tc.mentions) {
			t.Errorf("%s: HTTP %d %.300s, want %d mentioning %q", tc.what, a.Status, a.Body, tc.status, tc.mentions)
			continue
		}
		if m := a.JSON(t); m["code"] != float64(tc.status) || m["error"] == "" {
			t.Errorf("%s: answer %s has not Mixpanel's shape", tc.what, a.Body)
		}
	}
	wrong := harness.Connect(t, func() harness.Credentials { k := c.Creds; k.ServiceSecret = "hunter2-wrong"; return k }())
	if a := wrong.MustDo(t, http.MethodPost, path, []byte(`[]`), harness.JSONHead); a.Status != 401 {
		t.Errorf("wrong secret: HTTP %d %s, want 401", a.Status, a.Body)
	}
	st, err := c.Data().GetDataStatistics(t.Context(), &ingestionv1.GetDataStatisticsRequest{Parent: c.Project})
	if err != nil || st.GetEvents() != 0 || st.GetUsers() != 0 {
		t.Errorf("refused imports stored %v (%v)", st, err)
	}
	// The service is in order afterwards.
	good := fmt.Sprintf(`[{"event":"e","properties":{"time":%d,"distinct_id":"u","$insert_id":"a"}}]`, 1_790_000_000)
	if a := c.MustDo(t, http.MethodPost, path, []byte(good), harness.JSONHead); a.Status != 200 {
		t.Errorf("a good import afterwards: HTTP %d %s", a.Status, a.Body)
	}
}

func TestAnImportIsToldWhatItsCredentialLacksAndAStrangerNothing(t *testing.T) {
	p := harness.Standalone(t, t.TempDir())
	c := p.Client(t)
	account := func(role typev1.Role) (user, secret string) {
		t.Helper()
		a, err := c.Projects().CreateServiceAccount(t.Context(), &registryv1.CreateServiceAccountRequest{Parent: c.Project, ServiceAccount: &registryv1.ServiceAccount{DisplayName: "sender", Role: role}})
		if err != nil {
			t.Fatal(err)
		}
		harness.Secret("service secret", a.GetSecret())
		return a.GetServiceAccount().GetUsername(), a.GetSecret()
	}
	admin, adminSecret := account(typev1.Role_ROLE_ADMIN)
	analyst, analystSecret := account(typev1.Role_ROLE_ANALYST)
	mine := "&project_id=" + c.Creds.ProjectID
	const (
		missing = "project_id is required with a service account, as a number, in the query or the form"
		another = "project_id is not the project of this credential"
		role    = "the service account needs the role ADMIN or OWNER to import"
		nothing = "Invalid credentials"
	)
	for _, tc := range []struct{ what, user, secret, query, want string }{
		{"all there", admin, adminSecret, mine, ""},
		{"project_id missing", admin, adminSecret, "", missing},
		{"project_id no number", admin, adminSecret, "&project_id=shop", missing},
		{"project_id of nobody", admin, adminSecret, "&project_id=4711", another},
		{"role too low", analyst, analystSecret, mine, role},
		{"role too low, project_id missing", analyst, analystSecret, "", missing},
		{"role too low, project_id of nobody", analyst, analystSecret, "&project_id=4711", another},
		{"token with another project_id", c.Creds.ProjectToken, "", "&project_id=4711", another},
		{"a stranger as the account", admin, "wrong", mine, nothing},
		{"a stranger as the account, project_id missing", admin, "wrong", "", nothing},
		{"a stranger as the account, project_id of nobody", admin, "wrong", "&project_id=4711", nothing},
		{"a stranger as an account there is not", "nobody", "wrong", mine, nothing},
		{"a stranger as an account there is not, project_id missing", "nobody", "wrong", "", nothing},
		{"the account without its secret", admin, "", mine, nothing},
		{"an unknown token", "nobody", "", mine, nothing},
	} {
		head := map[string]string{"Content-Type": "application/json", "Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte(tc.user+":"+tc.secret))}
		a := c.MustDo(t, http.MethodPost, "/import?strict=1"+tc.query, []byte(`[]`), head)
		want := fmt.Sprintf(`{"code":401,"error":%q,"status":"Unauthorized"}`, tc.want)
		if tc.want == "" {
			want = `{"code":200,"num_records_imported":0,"status":"OK"}`
		}
		if string(a.Body) != want || a.Status != 401 && tc.want != "" {
			t.Errorf("%s: HTTP %d %s, want %s", tc.what, a.Status, a.Body, want)
		}
	}
}

func TestAProjectOverItsRateIsToldWhenToComeBack(t *testing.T) {
	c := harness.Standalone(t, t.TempDir(), "--project-events-per-minute", "3").Client(t)
	path := "/import?strict=1&project_id=" + c.Creds.ProjectID
	batch := func(n int) []byte {
		one := fmt.Sprintf(`{"event":"e","properties":{"time":%d,"distinct_id":"u","$insert_id":"a"}}`, 1_790_000_000)
		return []byte("[" + strings.TrimSuffix(strings.Repeat(one+",", n), ",") + "]")
	}
	if a := c.MustDo(t, http.MethodPost, path, batch(3), harness.JSONHead); a.Status != 200 {
		t.Fatalf("within the rate: HTTP %d %s", a.Status, a.Body)
	}
	a := c.MustDo(t, http.MethodPost, path, batch(1), harness.JSONHead)
	if m := a.JSON(t); a.Status != 429 || m["code"] != 429.0 || m["status"] != "Too Many Requests" || a.Header.Get("Retry-After") == "" {
		t.Errorf("over the rate: HTTP %d %v %s", a.Status, a.Header, a.Body)
	}
}

func TestSegmentsCredentialCheckAndGroupProfilesOverREST(t *testing.T) {
	c := harness.Standalone(t, t.TempDir()).Client(t)
	check := func(body string, want int) {
		t.Helper()
		a := c.MustDo(t, http.MethodPost, "/api/app/validate-project-credentials/", []byte(body), map[string]string{"Content-Type": "text/plain;charset=UTF-8", "Authorization": ""})
		if a.Status != want || (a.JSON(t)["status"] == "ok") != (want == 200) {
			t.Errorf("HTTP %d %s, want %d", a.Status, a.Body, want)
		}
	}
	check(fmt.Sprintf(`{"api_secret":%q,"project_token":%q}`, c.Creds.ProjectSecret, c.Creds.ProjectToken), 200)
	check(fmt.Sprintf(`{"project_token":%q}`, c.Creds.ProjectToken), 200)
	check(fmt.Sprintf(`{"api_secret":"wrong","project_token":%q}`, c.Creds.ProjectToken), 401)
	check(`{"project_token":"wrong"}`, 401)

	update := fmt.Sprintf(`[{"$token":%q,"$group_key":"company","$group_id":"acme","$set":{"size":5}}]`, c.Creds.ProjectToken)
	if a := c.MustDo(t, http.MethodPost, "/groups/", []byte(update), harness.JSONHead); string(a.Body) != "1" {
		t.Fatalf("HTTP %d %s", a.Status, a.Body)
	}
	got := &ingestionv1.GetGroupProfileResponse{}
	c.REST(t, http.MethodGet, c.Project+"/groupProfiles:lookup?group_key=company&group_id=acme", nil, got)
	list := &ingestionv1.ListGroupProfilesResponse{}
	c.REST(t, http.MethodGet, c.Project+"/groupProfiles?group_key=company", nil, list)
	if got.GetGroupProfile().GetProperties().AsMap()["size"] != 5.0 || len(list.GetGroupProfiles()) != 1 || list.GetGroupProfiles()[0].GetGroupId() != "acme" {
		t.Errorf("read %v, %v", got, list)
	}
	refusedREST(t, "an unknown group", c.MustDo(t, http.MethodGet, "/v1/"+c.Project+"/groupProfiles:lookup?group_key=company&group_id=x", nil, nil), 404, "no group")
	refusedREST(t, "a group without a key", c.MustDo(t, http.MethodGet, "/v1/"+c.Project+"/groupProfiles:lookup?group_id=x", nil, nil), 400, "group_key")
}

func TestAPatchOfOneMtuSettingLeavesTheOthers(t *testing.T) {
	p := harness.Standalone(t, t.TempDir())
	c := p.Client(t)
	path := "/v1/projects/" + p.Creds.ProjectID
	patch := func(body string) *harness.Answer { return c.MustDo(t, "PATCH", path, []byte(body), harness.JSONHead) }
	if a := patch(`{"mtu":{"by_event_time":true,"partner_markers":{"braze":{"values":["b"]}}}}`); a.Status != 200 {
		t.Fatalf("HTTP %d %s", a.Status, a.Body)
	}
	a := patch(`{"mtu":{"clevertap_sources":["ct"]}}`)
	for _, want := range []string{`"by_event_time":true`, `"braze"`, `"ct"`} {
		if a.Status != 200 || !strings.Contains(strings.ReplaceAll(string(a.Body), " ", ""), want) {
			t.Errorf("HTTP %d %s, want %s in it", a.Status, a.Body, want)
		}
	}
	refusedREST(t, "a setting that does not exist", patch(`{"mtu":{"moon":true}}`), 400, "moon")
	refusedREST(t, "another identity system", patch(`{"identity_system":"IDENTITY_SYSTEM_LEGACY"}`), 400, "identity_system")
}
