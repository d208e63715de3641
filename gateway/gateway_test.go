package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/cohortbridge/cohortbridge/gateway"
	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	"github.com/cohortbridge/cohortbridge/platform/auth"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// services are scripted ends behind the real interceptors.
type services struct {
	ingestionv1.UnimplementedIngestionServiceServer
	ingestionv1.UnimplementedDataServiceServer
	cohortsyncv1.UnimplementedRunServiceServer
	registryv1.UnimplementedProjectServiceServer
	got    *ingestionv1.IngestRawRequest
	md     metadata.MD
	answer *ingestionv1.IngestRawResponse
	err    error
	wait   func() // called by IngestRaw, when there is one
	token  string // the project's, for ValidateProjectCredentials
	secret string
}

func (s *services) ValidateProjectCredentials(_ context.Context, req *ingestionv1.ValidateProjectCredentialsRequest) (*ingestionv1.ValidateProjectCredentialsResponse, error) {
	if s.err == nil && (req.GetProjectToken() != s.token || req.GetApiSecret() != "" && req.GetApiSecret() != s.secret) {
		return nil, fault.New(fault.Unauthenticated, "WRONG_CREDENTIAL", "Invalid credentials")
	}
	return &ingestionv1.ValidateProjectCredentialsResponse{}, s.err
}

func (s *services) IngestRaw(_ context.Context, req *ingestionv1.IngestRawRequest) (*ingestionv1.IngestRawResponse, error) {
	s.got = req
	if s.wait != nil {
		s.wait()
	}
	return s.answer, s.err
}

func (s *services) GetProfile(ctx context.Context, _ *ingestionv1.GetProfileRequest) (*ingestionv1.GetProfileResponse, error) {
	s.md, _ = metadata.FromIncomingContext(ctx)
	return nil, s.err
}

func (s *services) GetProject(context.Context, *registryv1.GetProjectRequest) (*registryv1.GetProjectResponse, error) {
	return &registryv1.GetProjectResponse{}, nil
}

func (s *services) WatchRun(req *cohortsyncv1.WatchRunRequest, st grpc.ServerStreamingServer[cohortsyncv1.WatchRunResponse]) error {
	for _, state := range []cohortsyncv1.Run_State{cohortsyncv1.Run_STATE_DELIVERING, cohortsyncv1.Run_STATE_SUCCEEDED} {
		if err := st.Send(&cohortsyncv1.WatchRunResponse{Run: &cohortsyncv1.Run{Name: req.GetName(), State: state}}); err != nil {
			return err
		}
	}
	return nil
}

func serve(t *testing.T, s *services, cfg gateway.Config) string {
	t.Helper()
	in := rpc.NewInProcess()
	if err := in.Guard(&auth.Guard{OperatorKey: "key"}); err != nil {
		t.Fatal(err)
	}
	ingestionv1.RegisterIngestionServiceServer(in, s)
	ingestionv1.RegisterDataServiceServer(in, s)
	cohortsyncv1.RegisterRunServiceServer(in, s)
	registryv1.RegisterProjectServiceServer(in, s)
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

func call(t *testing.T, method, url, body string, head map[string]string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range head {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultTransport.RoundTrip(req) // no redirects
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestMixpanelRoutesHandTheRequestOnAndTheAnswerBack(t *testing.T) {
	s := &services{answer: &ingestionv1.IngestRawResponse{Status: 418, ContentType: "text/x", Headers: map[string]string{"X-A": "b"}, Body: []byte("1")}}
	url := serve(t, s, gateway.Config{})
	for path, endpoint := range map[string]ingestionv1.IngestRawRequest_Endpoint{
		"/track": 1, "/track/": 1, "/import": 2, "/import/": 2, "/engage": 3, "/engage/": 3, "/groups": 4, "/groups/": 4,
	} {
		resp, body := call(t, "POST", url+path+"?verbose=1&x=%2B", "body", map[string]string{"Content-Type": "text/plain", "Content-Encoding": "gzip", "Authorization": "Basic eDp5"})
		if resp.StatusCode != 418 || body != "1" || resp.Header.Get("Content-Type") != "text/x" || resp.Header.Get("X-A") != "b" {
			t.Errorf("%s answers %d %q %v", path, resp.StatusCode, body, resp.Header)
		}
		g := s.got
		if g.GetEndpoint() != endpoint || g.GetMethod() != "POST" || g.GetContentType() != "text/plain" || g.GetContentEncoding() != "gzip" || g.GetRawQuery() != "verbose=1&x=%2B" || g.GetAuthorization() != "Basic eDp5" || string(g.GetBody()) != "body" || g.GetClientIp() != "127.0.0.1" {
			t.Errorf("%s handed on %v", path, g)
		}
	}
}

func TestABrowserGetsItsOriginEchoedWithCredentials(t *testing.T) {
	url := serve(t, &services{answer: &ingestionv1.IngestRawResponse{Status: 200}}, gateway.Config{})
	resp, _ := call(t, "POST", url+"/track/", "", map[string]string{"Origin": "https://shop.example"})
	if resp.Header.Get("Access-Control-Allow-Origin") != "https://shop.example" || resp.Header.Get("Access-Control-Allow-Credentials") != "true" {
		t.Errorf("headers %v", resp.Header)
	}
	resp, _ = call(t, "OPTIONS", url+"/engage/", "", map[string]string{"Origin": "https://shop.example", "Access-Control-Request-Headers": "x-a"})
	if resp.StatusCode != 204 || resp.Header.Get("Access-Control-Allow-Headers") != "x-a" || !strings.Contains(resp.Header.Get("Access-Control-Allow-Methods"), "POST") {
		t.Errorf("preflight: %d %v", resp.StatusCode, resp.Header)
	}
}

func TestFailuresOfIngestionHaveTheStatusThatMakesClientsComeBack(t *testing.T) {
	s := &services{}
	url := serve(t, s, gateway.Config{MaxBodyBytes: 10})
	for what, tc := range map[string]struct {
		err   error
		code  int
		retry string
	}{
		"a full queue":  {fault.New(fault.Exhausted, "QUEUE_FULL", "full"), 429, "1"},
		"unavailable":   {status.Error(codes.Unavailable, "x"), 503, "1"},
		"a broken disk": {errors.New("disk of secret path"), 500, ""},
	} {
		s.err = tc.err
		resp, body := call(t, "POST", url+"/import", "[]", nil)
		if resp.StatusCode != tc.code || resp.Header.Get("Retry-After") != tc.retry || strings.Contains(body, "secret path") {
			t.Errorf("%s: %d %v %s", what, resp.StatusCode, resp.Header, body)
		}
		var m map[string]any
		if json.Unmarshal([]byte(body), &m) != nil || m["code"] != float64(tc.code) {
			t.Errorf("%s: body %s", what, body)
		}
	}
	resp, body := call(t, "POST", url+"/import", strings.Repeat("x", 11), nil)
	if resp.StatusCode != 413 || !strings.Contains(body, "10 bytes") {
		t.Errorf("over the limit: %d %s", resp.StatusCode, body)
	}
	if resp, _ := call(t, "DELETE", url+"/import", "", nil); resp.StatusCode != 405 || resp.Header.Get("Allow") == "" {
		t.Errorf("DELETE: %d", resp.StatusCode)
	}
}

func TestRESTGoesThroughAuthAndValidationAndCarriesNoForeignMetadata(t *testing.T) {
	s := &services{err: fault.New(fault.NotFound, "PROFILE_NOT_FOUND", "no such profile")}
	url := serve(t, s, gateway.Config{})
	get := func(path string, head map[string]string) (int, map[string]any) {
		t.Helper()
		resp, body := call(t, "GET", url+path, "", head)
		var m map[string]any
		if err := json.Unmarshal([]byte(body), &m); err != nil {
			t.Fatalf("%s: %s", path, body)
		}
		return resp.StatusCode, m
	}
	if code, m := get("/v1/projects/1/profiles:lookup?distinct_id=u", nil); code != 401 || m["message"] == "" {
		t.Errorf("without a credential: %d %v", code, m)
	}
	key := map[string]string{"Authorization": "Bearer key", "Grpc-Metadata-X-Cohortbridge-Internal-Key": "x", "X-Cohortbridge-Internal-Key": "x"}
	if code, m := get("/v1/projects/1/profiles:lookup", key); code != 400 || !strings.Contains(m["message"].(string), "distinct_id") {
		t.Errorf("without an id: %d %v", code, m)
	}
	if resp, body := call(t, "DELETE", url+"/v1/projects/1/cohorts", "", key); resp.StatusCode != 405 || !strings.Contains(body, "DELETE") {
		t.Errorf("unknown method: %d %s", resp.StatusCode, body)
	}
	code, m := get("/v1/projects/1/profiles:lookup?distinct_id=u", key)
	if code != 404 || m["message"] != "no such profile" || len(m["details"].([]any)) == 0 {
		t.Errorf("unknown profile: %d %v", code, m)
	}
	if len(s.md.Get(auth.InternalKeyHeader)) > 0 {
		t.Error("a caller's header became the internal key")
	}
}

func TestWhatCantBeReadIsToldByNameAndNotByValue(t *testing.T) {
	url := serve(t, &services{}, gateway.Config{})
	key := map[string]string{"Authorization": "Bearer key", "Content-Type": "application/json"}
	const (
		by   = "must be one of BY_DAY, BY_SOURCE, BY_EVENT"
		role = "must be one of ROLE_CONSUMER, ROLE_ANALYST, ROLE_ADMIN, ROLE_OWNER"
	)
	for _, c := range []struct{ what, method, path, body, field, description string }{
		{"an enum of the query", "GET", "/v1/projects/1/usage:breakDown?by=zoe4711", "", "by", by},
		{"an enum of the query by a number there is not", "GET", "/v1/projects/1/usage:breakDown?by=4711", "", "by", by},
		{"an enum of the body", "POST", "/v1/projects/1/serviceAccounts", `{"display_name":"x","role":"zoe4711"}`, "role", role},
		{"an enum of the body by a number there is not", "POST", "/v1/projects/1/serviceAccounts", `{"display_name":"x","role":4711}`, "service_account.role", role},
		{"an enum of the body of another type", "POST", "/v1/projects/1/serviceAccounts", `{"display_name":"x","role":["zoe4711"]}`, "role", role},
		{"an enum left out", "POST", "/v1/projects/1/serviceAccounts", `{"display_name":"x"}`, "service_account.role", role},
		{"an enum deep in the body", "POST", "/v1/projects/1/cohorts", `{"display_name":"x","definition":{"property":{"filter":{"property":"plan","type":"zoe4711"}}}}`, "type", "must be one of VALUE_TYPE_STRING, "},
		{"an enum that may be left out", "POST", "/v1/projects/1/connectors", `{"display_name":"x","clevertap":{"channel":"zoe4711"}}`, "channel", "must be one of CHANNEL_PARTNER, CHANNEL_CUSTOM_LIST, CHANNEL_API_SEGMENT, or left out"},
		{"a number of the query", "GET", "/v1/projects/1/usage:months?months=zoe4711", "", "months", "must be a whole number"},
		{"a parameter given twice", "GET", "/v1/projects/1/profiles:lookup?distinct_id=zoe4711&distinct_id=b", "", "distinct_id", "given more than once"},
		{"a text of another type", "POST", "/v1/projects/1/cohorts", `{"display_name":4711}`, "display_name", "invalid value for string field display_name"},
	} {
		resp, body := call(t, c.method, url+c.path, c.body, key)
		var m struct {
			Message string
			Details []struct {
				FieldViolations []struct{ Field, Description string } `json:"field_violations"`
			}
		}
		if err := json.Unmarshal([]byte(body), &m); err != nil {
			t.Fatal(err)
		}
		fields := m.Details[len(m.Details)-1].FieldViolations
		if resp.StatusCode != 400 || len(fields) != 1 || fields[0].Field != c.field || !strings.Contains(fields[0].Description, c.description) || !strings.Contains(m.Message, fields[0].Description) {
			t.Errorf("%s: %d %s, want %s: %s", c.what, resp.StatusCode, body, c.field, c.description)
		}
		if strings.Contains(body, "4711") {
			t.Errorf("%s: the answer repeats the value: %s", c.what, body)
		}
	}
}

func TestAWatchedRunStreamsAsLinesAndAsServerSentEvents(t *testing.T) {
	url := serve(t, &services{}, gateway.Config{}) + "/v1/projects/1/syncs/2/runs/3:watch"
	resp, body := call(t, "GET", url, "", map[string]string{"Authorization": "Bearer key"})
	lines := 0
	for sc := bufio.NewScanner(strings.NewReader(body)); sc.Scan(); lines++ {
		var m struct{ Result struct{ Run map[string]any } }
		if err := json.Unmarshal(sc.Bytes(), &m); err != nil || m.Result.Run["name"] != "projects/1/syncs/2/runs/3" {
			t.Errorf("line %s: %v", sc.Bytes(), err)
		}
	}
	if resp.StatusCode != 200 || lines != 2 {
		t.Errorf("%d, %d lines:\n%s", resp.StatusCode, lines, body)
	}
	resp, body = call(t, "GET", url, "", map[string]string{"Authorization": "Bearer key", "Accept": "text/event-stream"})
	if resp.Header.Get("Content-Type") != "text/event-stream" || strings.Count(body, "data: {") != 2 || strings.Count(body, "\n\n") != 2 {
		t.Errorf("%v\n%s", resp.Header, body)
	}
}

func TestHealthReadinessAndDocsAnswer(t *testing.T) {
	ready := errors.New("not yet")
	url := serve(t, &services{}, gateway.Config{Ready: func(context.Context) error { return ready }})
	if resp, _ := call(t, "GET", url+"/healthz", "", nil); resp.StatusCode != 200 {
		t.Errorf("healthz: %d", resp.StatusCode)
	}
	if resp, _ := call(t, "GET", url+"/readyz", "", nil); resp.StatusCode != 503 {
		t.Errorf("readyz before: %d", resp.StatusCode)
	}
	ready = nil
	if resp, _ := call(t, "GET", url+"/readyz", "", nil); resp.StatusCode != 200 {
		t.Errorf("readyz: %d", resp.StatusCode)
	}
	resp, body := call(t, "GET", url+"/openapi.json", "", nil)
	if resp.StatusCode != 200 || !bytes.Contains([]byte(body), []byte("/v1/projects/{project}/syncs")) {
		t.Errorf("openapi: %d %.100s", resp.StatusCode, body)
	}
	if resp, body := call(t, "GET", url+"/docs/", "", nil); resp.StatusCode != 200 || !strings.Contains(body, "/openapi.json") {
		t.Errorf("docs: %d %.200s", resp.StatusCode, body)
	}
}
