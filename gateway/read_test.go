package gateway_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cohortbridge/cohortbridge/gateway"
	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/platform/auth"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/rpc"
)

// readSide is scripted services behind the real interceptors. Project 1 has the
// secret "hush" and the service account reader:pass; project 2 is somebody else's.
type readSide struct {
	registryv1.UnimplementedProjectServiceServer
	cohortsyncv1.UnimplementedCohortServiceServer
	ingestionv1.UnimplementedDataServiceServer

	mu      sync.Mutex
	export  *ingestionv1.ExportEventsRequest
	query   *ingestionv1.QueryProfilesRequest
	cohort  string
	events  int           // how many are exported, 100 a chunk
	breakAt int           // after how many chunks it fails; 0 is never
	hold    chan struct{} // an export waits for it, when there is one
	entered chan struct{}
}

func (s *readSide) GetProject(_ context.Context, req *registryv1.GetProjectRequest) (*registryv1.GetProjectResponse, error) {
	return &registryv1.GetProjectResponse{Project: &registryv1.Project{Name: req.GetName()}}, nil
}

func (s *readSide) ListProjects(ctx context.Context, _ *registryv1.ListProjectsRequest) (*registryv1.ListProjectsResponse, error) {
	out := &registryv1.ListProjectsResponse{}
	for name := range auth.FromContext(ctx).Roles {
		out.Projects = append(out.Projects, &registryv1.Project{Name: name})
	}
	return out, nil
}

func (s *readSide) ExportEvents(req *ingestionv1.ExportEventsRequest, st grpc.ServerStreamingServer[ingestionv1.ExportEventsResponse]) error {
	s.mu.Lock()
	s.export = proto.CloneOf(req)
	s.mu.Unlock()
	if s.hold != nil {
		s.entered <- struct{}{}
		<-s.hold
	}
	for i := 0; i < s.events; i += 100 {
		if s.breakAt > 0 && i >= 100*s.breakAt {
			return fault.New(fault.Unavailable, "WAREHOUSE_DOWN", "the warehouse does not answer")
		}
		m := &ingestionv1.ExportEventsResponse{}
		for range min(100, s.events-i) {
			m.Events = append(m.Events, &ingestionv1.ExportedEvent{Event: "E", Time: timestamppb.New(time.UnixMilli(1_774_950_000_123)), DistinctId: "u", InsertId: "i", PropertiesJson: `{"a":1}`})
		}
		if err := st.Send(m); err != nil {
			return err
		}
	}
	if s.breakAt > 0 {
		return fault.New(fault.Unavailable, "WAREHOUSE_DOWN", "the warehouse does not answer")
	}
	return nil
}

func (s *readSide) QueryProfiles(req *ingestionv1.QueryProfilesRequest, st grpc.ServerStreamingServer[ingestionv1.QueryProfilesResponse]) error {
	s.mu.Lock()
	s.query = proto.CloneOf(req)
	s.mu.Unlock()
	if req.GetWhere() == "broken" {
		return fault.Field("where", "at character 1: want a value")
	}
	for _, m := range []*ingestionv1.QueryProfilesResponse{
		{Page: &ingestionv1.ProfilePage{SessionId: "abc", Page: req.GetPage(), PageSize: 1000, Total: 3, ComputeTime: timestamppb.New(time.Unix(1_774_950_000, 5000))}},
		{Profiles: []*ingestionv1.QueriedProfile{{DistinctId: `a"<é`, PropertiesJson: `{"x":1}`}, {DistinctId: "b", PropertiesJson: "{}"}}},
		{Profiles: []*ingestionv1.QueriedProfile{{DistinctId: "c", PropertiesJson: `{"y":["z"]}`}}},
	} {
		if err := st.Send(m); err != nil {
			return err
		}
	}
	return nil
}

func (s *readSide) GetMemberSet(_ context.Context, req *cohortsyncv1.GetMemberSetRequest) (*cohortsyncv1.GetMemberSetResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if strings.HasSuffix(req.GetParent(), "/99") {
		return nil, fault.New(fault.NotFound, "COHORT_NOT_FOUND", "there is no such cohort")
	}
	s.cohort = req.GetParent()
	return &cohortsyncv1.GetMemberSetResponse{Roaring: []byte("set"), Count: 7}, nil
}

func (s *readSide) ListCohorts(_ context.Context, req *cohortsyncv1.ListCohortsRequest) (*cohortsyncv1.ListCohortsResponse, error) {
	at := timestamppb.New(time.Date(2026, 11, 1, 9, 8, 7, 0, time.UTC))
	if req.GetPageToken() == "" {
		return &cohortsyncv1.ListCohortsResponse{NextPageToken: "4", Cohorts: []*cohortsyncv1.Cohort{{Name: "projects/1/cohorts/4", DisplayName: "Lapsed", Description: "d", CreateTime: at, LastEvaluation: &cohortsyncv1.Evaluation{Users: 12, IdentifiedUsers: 9}}}}, nil
	}
	return &cohortsyncv1.ListCohortsResponse{Cohorts: []*cohortsyncv1.Cohort{{Name: "projects/1/cohorts/5", DisplayName: "Never evaluated", CreateTime: at}, {Name: "projects/1/cohorts/99", CreateTime: at}}}, nil
}

func (s *readSide) serve(t *testing.T, cfg gateway.Config) string {
	t.Helper()
	in := rpc.NewInProcess()
	guard := &auth.Guard{OperatorKey: "key", Authenticator: auth.AuthenticatorFunc(func(_ context.Context, user, secret string) (*auth.Principal, error) {
		p := &auth.Principal{Name: user, Roles: map[string]typev1.Role{"projects/1": typev1.Role_ROLE_CONSUMER}}
		switch user + ":" + secret {
		case "hush:":
			p.ProjectSecret = true
		case "reader:pass":
		default:
			return nil, fault.New(fault.Unauthenticated, "WRONG_CREDENTIAL", "the credential is wrong")
		}
		return p, nil
	})}
	if err := in.Guard(guard); err != nil {
		t.Fatal(err)
	}
	registryv1.RegisterProjectServiceServer(in, s)
	cohortsyncv1.RegisterCohortServiceServer(in, s)
	ingestionv1.RegisterDataServiceServer(in, s)
	conn := in.Dial(nil)
	h, err := gateway.New(context.Background(), cfg, gateway.Conns{Registry: conn, CohortSync: conn, Ingestion: conn})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(h)
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		web.Close()
		if err := in.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return web.URL
}

func basic(user, secret string) map[string]string {
	return map[string]string{"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+secret))}
}

func with(head map[string]string, more ...string) map[string]string {
	out := map[string]string{}
	for k, v := range head {
		out[k] = v
	}
	for i := 0; i < len(more); i += 2 {
		out[more[i]] = more[i+1]
	}
	return out
}

// failed checks an error answer of Mixpanel's form.
func failed(t *testing.T, what string, resp *http.Response, body string, code int, say string) {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(body), &m); err != nil || resp.StatusCode != code || len(m) != 2 || m["status"] != "error" || !strings.Contains(m["error"].(string), say) {
		t.Errorf("%s: %d %s, want %d and %q", what, resp.StatusCode, body, code, say)
	}
}

const days = "&from_date=2026-03-30&to_date=2026-03-31"

func TestTheExportIsCompressedAbove1400BytesForThoseWhoAsk(t *testing.T) {
	s := &readSide{}
	u := s.serve(t, gateway.Config{}) + "/api/2.0/export?project_id=1" + days
	for _, c := range []struct {
		events int
		accept string
		gzip   bool
	}{{10, "gzip", false}, {11, "gzip", true}, {250, "deflate, gzip;q=0.5", true}, {250, "gzip;q=0", false}, {250, "identity", false}, {250, "*", true}, {0, "gzip", false}} {
		s.events = c.events
		resp, body := call(t, "GET", u, "", with(basic("reader", "pass"), "Accept-Encoding", c.accept))
		text := []byte(body)
		if (resp.Header.Get("Content-Encoding") == "gzip") != c.gzip || resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
			t.Errorf("%d events, %s: %d %v", c.events, c.accept, resp.StatusCode, resp.Header)
		}
		if c.gzip {
			z, err := gzip.NewReader(bytes.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			if text, err = io.ReadAll(z); err != nil {
				t.Fatal(err)
			}
		}
		if bytes.Count(text, []byte("\n")) != c.events || (len(text) > 1400) != (c.events > 10) {
			t.Errorf("%d events, %s: %d lines in %d bytes", c.events, c.accept, bytes.Count(text, []byte("\n")), len(text))
		}
	}
}

func TestAnExportThatFailsIsAnErrorUntilPartOfItIsSentAndThenBreaksOff(t *testing.T) {
	s := &readSide{events: 1, breakAt: 1}
	u := s.serve(t, gateway.Config{}) + "/api/2.0/export?project_id=1" + days
	resp, body := call(t, "GET", u, "", basic("reader", "pass"))
	failed(t, "before it is sent", resp, body, 503, "does not answer")
	if resp.Header.Get("Retry-After") == "" || resp.Header.Get("Content-Encoding") != "" {
		t.Errorf("headers %v", resp.Header)
	}
	s.events, s.breakAt = 5000, 40
	for _, encoding := range []string{"identity", "gzip"} {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", u, nil)
		req.SetBasicAuth("reader", "pass")
		req.Header.Set("Accept-Encoding", encoding)
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		if err == nil {
			t.Errorf("%s: half an export passes for a whole one", encoding)
		}
	}
}

func TestTheExportsParametersAreHandedOnOrRefusedByName(t *testing.T) {
	s := &readSide{events: 1}
	base := s.serve(t, gateway.Config{}) + "/api/2.0/export"
	resp, body := call(t, "GET", base+"/?project_id=1"+days+"&limit=100000&event="+url.QueryEscape(`["a","b"]`)+"&where="+url.QueryEscape(`user["x"] == "&"`)+"&time_in_ms=true", "", basic("reader", "pass"))
	want := &ingestionv1.ExportEventsRequest{Parent: "projects/1", FromDate: "2026-03-30", ToDate: "2026-03-31", Limit: 100_000, Events: []string{"a", "b"}, Where: `user["x"] == "&"`}
	if resp.StatusCode != 200 || !proto.Equal(s.export, want) || !strings.Contains(body, `"time":1774950000123`) {
		t.Errorf("%d %s, handed on %v", resp.StatusCode, body, s.export)
	}
	for query, c := range map[string]struct {
		code int
		say  string
	}{
		"project_id=1&limit=0": {400, "limit: must be a number from 1 to 100000"}, "project_id=1&limit=100001": {400, "limit"}, "project_id=1&limit=many": {400, "limit"},
		"project_id=1&event=a": {400, "event: must be a JSON array"}, "project_id=1&event=null": {400, "event"}, "project_id=1&event=[1]": {400, "event"},
		"project_id=1&time_in_ms=yes": {400, "time_in_ms: must be true or false"}, "project_id=one": {400, "project_id: must be a number"},
		"": {400, "project_id: is required with a service account"}, "project_id=2": {403, "CONSUMER"}, "project_id=1&x=%zz": {400, "not URL-encoded"},
	} {
		resp, body := call(t, "GET", base+"?"+query, "", basic("reader", "pass"))
		failed(t, query, resp, body, c.code, c.say)
	}
	resp, body = call(t, "POST", base+"?project_id=1", "", basic("reader", "pass"))
	failed(t, "POST", resp, body, 405, "GET")
	for what, head := range map[string]map[string]string{"nobody": nil, "a wrong secret": basic("reader", "no"), "a wrong project secret": basic("nope", "")} {
		resp, body := call(t, "GET", base+"?x=1"+days, "", head)
		code := 401
		if what == "a wrong secret" {
			code = 400 // it does not get that far
		}
		failed(t, what, resp, body, code, "")
		resp, body = call(t, "GET", base+"?project_id=1"+days, "", head)
		failed(t, what+" with project_id", resp, body, 401, "")
	}
}

func TestAProjectSecretSelectsItsProjectByItself(t *testing.T) {
	s := &readSide{events: 1}
	u := s.serve(t, gateway.Config{})
	for _, head := range []map[string]string{basic("hush", ""), {"Authorization": "Basic hush:"}} {
		for path, project := range map[string]func() string{
			"/api/2.0/export?x=1" + days: func() string { return s.export.GetParent() }, "/api/2.0/engage": func() string { return s.query.GetParent() },
			"/api/query/engage?project_id=1": func() string { return s.query.GetParent() }, "/api/2.0/cohorts/list": func() string { return "projects/1" },
		} {
			s.export, s.query = nil, nil
			if resp, body := call(t, "GET", u+path, "", head); resp.StatusCode != 200 || project() != "projects/1" {
				t.Errorf("%s: %d %s", path, resp.StatusCode, body)
			}
		}
	}
	resp, body := call(t, "GET", u+"/api/2.0/engage?project_id=2", "", basic("hush", ""))
	failed(t, "another project", resp, body, 403, "")
	if resp, body := call(t, "GET", u+"/v1/projects/1/cohorts/4/members", "", basic("hush", "")); resp.StatusCode != 403 {
		t.Errorf("another API: %d %s", resp.StatusCode, body)
	}
}

func TestTheEngageQueryIsTranslatedBothWays(t *testing.T) {
	s := &readSide{}
	u := s.serve(t, gateway.Config{})
	reader := with(basic("reader", "pass"), "Content-Type", "application/x-www-form-urlencoded")
	const want = `{"computed_at":"2026-03-31T09:40:00.000005+00:00","page":0,"page_size":1000,"session_id":"abc","status":"ok","total":3,"results":[` +
		`{"$distinct_id":"a\"\u003cé","$properties":{"x":1}},{"$distinct_id":"b","$properties":{}},{"$distinct_id":"c","$properties":{"y":["z"]}}]}` + "\n"
	type req = ingestionv1.QueryProfilesRequest
	set := &ingestionv1.UserSet{Roaring: []byte("set"), Count: 7}
	for form, handed := range map[string]*req{
		"": {},
		"where=" + url.QueryEscape(`user["$plan"] == "pro"`): {Where: `user["$plan"] == "pro"`},
		"selector=x": {Where: "x"}, "distinct_id=a%26b": {DistinctIds: []string{"a&b"}}, `distinct_ids=["a","b"]`: {DistinctIds: []string{"a", "b"}},
		`output_properties=["$email"]`: {OutputProperties: []string{"$email"}}, "page_size=10": {PageSize: 10}, "data_group_id=company": {GroupKey: "company"},
		`filter_by_cohort={"id":4}`:                                   {Users: set, IncludeAllUsers: true},
		`filter_by_cohort={"id":"4"}&include_all_users=true`:          {Users: set, IncludeAllUsers: true},
		`filter_by_cohort={"id": 4}&include_all_users=false`:          {Users: set},
		`include_all_users=true`:                                      {},
		`session_id=abc&page=2&filter_by_cohort={"id":4}&page_size=5`: {SessionId: "abc", Page: 2, PageSize: 5},
	} {
		handed.Parent = "projects/1"
		for _, path := range []string{"/api/2.0/engage", "/api/query/engage", "/api/query/engage/"} {
			s.query, s.cohort = nil, ""
			resp, body := call(t, "POST", u+path+"?project_id=1&workspace_id=7", form, reader)
			if handed.GetPage() == 0 && body != want || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json" || !proto.Equal(s.query, handed) {
				t.Errorf("POST %s %s: %d %s, handed on %v", path, form, resp.StatusCode, body, s.query)
			}
			if (s.cohort == "projects/1/cohorts/4") != (handed.GetUsers() != nil) {
				t.Errorf("%s: cohort %q", form, s.cohort)
			}
			s.query = nil
			if resp, body := call(t, "GET", u+path+"?project_id=1&"+strings.ReplaceAll(form, " ", "%20"), "", basic("reader", "pass")); resp.StatusCode != 200 || !proto.Equal(s.query, handed) {
				t.Errorf("GET %s %s: %d %s, handed on %v", path, form, resp.StatusCode, body, s.query)
			}
		}
	}
	// As mixpanel-utils' streaming exporter sends it: not encoded, no content type.
	s.query = nil
	if resp, _ := call(t, "POST", u+"/api/query/engage?project_id=1", `filter_by_cohort={"id": 4}&include_all_users=false&where=user["$plan"] == "pro"`, basic("reader", "pass")); resp.StatusCode != 200 || s.query.GetWhere() != `user["$plan"] == "pro"` || s.query.GetUsers() == nil {
		t.Errorf("a form that is not encoded: %d, handed on %v", resp.StatusCode, s.query)
	}
	// project_id may be in the form too.
	if resp, body := call(t, "POST", u+"/api/query/engage", "project_id=1", reader); resp.StatusCode != 200 {
		t.Errorf("project_id in the form: %d %s", resp.StatusCode, body)
	}
	for form, c := range map[string]struct {
		code int
		say  string
	}{
		"behaviors=[]": {400, "behaviors: is not supported; define a cohort"}, "as_of_timestamp=1": {400, "as_of_timestamp"}, "page=-1": {400, "page: must be a number"}, "page_size=1001": {400, "page_size"},
		"distinct_ids=a": {400, "distinct_ids: must be a JSON array"}, "distinct_ids=[]": {400, "at least one"}, `distinct_id=a&distinct_ids=["b"]`: {400, "distinct_id"}, "output_properties=x": {400, "output_properties"},
		"filter_by_cohort=4": {400, "filter_by_cohort: must be"}, `filter_by_cohort={"id":"x"}`: {400, "filter_by_cohort"}, `filter_by_cohort={"raw_cohort":{}}`: {400, "filter_by_cohort"},
		`filter_by_cohort={"id":4}&data_group_id=c`: {400, "data_group_id"}, `filter_by_cohort={"id":4}&include_all_users=perhaps`: {400, "include_all_users"},
		`filter_by_cohort={"id":99}`: {404, "no such cohort"}, "where=broken": {400, "where: at character 1"}, "where=%zz": {400, "not URL-encoded"},
		"where=" + strings.Repeat("x", 1<<20): {413, "1048576"},
	} {
		resp, body := call(t, "POST", u+"/api/2.0/engage?project_id=1", form, reader)
		failed(t, form[:min(len(form), 60)], resp, body, c.code, c.say)
	}
	resp, body := call(t, "POST", u+"/api/2.0/engage?project_id=1", `{"where":"x"}`, with(reader, "Content-Type", "application/json"))
	failed(t, "JSON", resp, body, 415, "form")
}

func TestCohortsAreListedInMixpanelsForm(t *testing.T) {
	s := &readSide{}
	u := s.serve(t, gateway.Config{})
	const want = `[{"id":4,"name":"Lapsed","description":"d","count":12,"is_visible":1,"created":"2026-11-01 09:08:07","project_id":1},` +
		`{"id":5,"name":"Never evaluated","description":"","count":7,"is_visible":1,"created":"2026-11-01 09:08:07","project_id":1}]` + "\n"
	for _, path := range []string{"/api/query/cohorts/list", "/api/2.0/cohorts/list", "/api/2.0/cohorts/list/"} {
		for _, method := range []string{"POST", "GET"} {
			if resp, body := call(t, method, u+path+"?project_id=1", "", basic("reader", "pass")); resp.StatusCode != 200 || body != want {
				t.Errorf("%s %s: %d %s", method, path, resp.StatusCode, body)
			}
		}
	}
}

func TestReadsAreLimitedByProjectAndOnlyForThoseWhoMayRead(t *testing.T) {
	s := &readSide{events: 1, hold: make(chan struct{}), entered: make(chan struct{}, 2)}
	u := s.serve(t, gateway.Config{Read: gateway.ReadLimits{QueryPerHour: 2, ExportPerHour: 3, ExportPerSecond: 3, ExportConcurrent: 2}})
	exports := u + "/api/2.0/export?project_id=1" + days
	for range 5 { // strangers and mistakes use nothing up
		call(t, "GET", exports, "", basic("reader", "no"))
		call(t, "GET", u+"/api/2.0/engage?project_id=1", "", basic("nope", ""))
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if resp, body := call(t, "GET", exports, "", basic("reader", "pass")); resp.StatusCode != 200 {
				t.Errorf("let in, then %d %s", resp.StatusCode, body)
			}
		})
		select {
		case <-s.entered:
		case <-time.After(10 * time.Second):
			t.Fatal("an export within the limits is not let in")
		}
	}
	resp, body := call(t, "GET", exports, "", basic("reader", "pass"))
	failed(t, "a third at one time", resp, body, 429, "rate limits")
	if resp.Header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q", resp.Header.Get("Retry-After"))
	}
	close(s.hold)
	wg.Wait()
	if resp, body := call(t, "GET", exports, "", basic("reader", "pass")); resp.StatusCode != 200 {
		t.Errorf("the third: %d %s", resp.StatusCode, body)
	}
	<-s.entered
	resp, body = call(t, "GET", exports, "", basic("hush", ""))
	failed(t, "the fourth, by another caller", resp, body, 429, "")
	if after := resp.Header.Get("Retry-After"); len(after) != 4 { // nearly an hour, in seconds
		t.Errorf("Retry-After %q", after)
	}
	for i, path := range []string{"/api/2.0/engage", "/api/query/cohorts/list", "/api/query/engage"} {
		resp, body := call(t, "GET", u+path+"?project_id=1", "", basic("reader", "pass"))
		if i < 2 && resp.StatusCode != 200 {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
		if i == 2 {
			failed(t, path, resp, body, 429, "")
		}
	}
	if resp, body := call(t, "GET", exports+"&project_id=2", "", map[string]string{"Authorization": "Bearer key"}); resp.StatusCode != 429 {
		t.Errorf("the operator in project 1: %d %s", resp.StatusCode, body)
	}
	if resp, body := call(t, "GET", u+"/api/2.0/export?project_id=2"+days, "", map[string]string{"Authorization": "Bearer key"}); resp.StatusCode != 200 {
		t.Errorf("another project: %d %s", resp.StatusCode, body)
	}
}
