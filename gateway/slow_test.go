package gateway_test

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cohortbridge/cohortbridge/gateway"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

// soon is far below the time that a body is given in tests that use it, and far
// above what a busy machine needs for an answer.
const soon = 20 * time.Second

// answerOf reads an answer that must come soon.
func answerOf(t *testing.T, what string, c net.Conn, from *bufio.Reader) (*http.Response, string) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(from, nil)
	if err != nil {
		t.Fatalf("%s: no answer: %v", what, err)
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s: half an answer: %v", what, err)
	}
	return resp, string(body)
}

// unfinished are the ways in which a body may be announced and not come.
var unfinished = map[string]string{
	"a length":                       "Content-Length: 1000\r\n\r\n[{",
	"a length, nothing of it":        "Content-Length: 1000\r\n\r\n",
	"a great length":                 "Content-Length: 15000000\r\n\r\n[{",
	"chunks":                         "Transfer-Encoding: chunked\r\n\r\n2\r\n[{\r\n",
	"a length, waiting to be told":   "Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n",
	"a length, and no more requests": "Connection: close\r\nContent-Length: 1000\r\n\r\n[{",
}

func TestAnAnswerThatDoesNotDependOnTheBodyDoesNotWaitForIt(t *testing.T) {
	in, hold := make(chan struct{}, 1), make(chan struct{})
	s := &services{answer: &ingestionv1.IngestRawResponse{Status: 200, Body: []byte("1")}, wait: func() { in <- struct{}{}; <-hold }}
	url := serve(t, s, gateway.Config{MaxConcurrent: 1, BodyTimeout: time.Hour})
	first := raw(t, url, "POST /track HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}")
	<-in // the only place is taken
	const key = "Authorization: Bearer key\r\n"
	cases := []struct {
		request, head string
		code          int
	}{
		{"POST /track", "", 429}, {"POST /import", "", 429}, {"POST /engage/", "", 429}, {"POST /groups", "", 429}, {"GET /track", "", 429},
		{"PUT /track", "", 405}, {"OPTIONS /track", "", 204},
		{"POST /nope", "", 404}, {"POST /api/nope", "", 404}, {"POST /healthz", "", 405}, {"GET /healthz", "", 200}, {"GET /docs/", "", 200},
		{"POST /v1/projects/1/serviceAccounts", "", 401}, {"GET /v1/projects/1", "", 401}, {"GET /v1/projects/1", key, 200},
		{"POST /v1/nope", key, 404}, {"PUT /v1/projects/1/cohorts", key, 405},
		{"GET /api/2.0/export?project_id=1", "", 401}, {"PUT /api/2.0/engage", "", 405}, {"POST /api/2.0/engage", "Content-Type: application/json\r\n", 415}, {"POST /api/2.0/engage", "", 429},
	}
	type sent struct {
		what string
		code int
		conn net.Conn
		from *bufio.Reader
	}
	var all []sent
	began := time.Now()
	for _, c := range cases {
		for how, rest := range unfinished {
			conn := raw(t, url, c.request+" HTTP/1.1\r\nHost: h\r\n"+c.head+rest)
			all = append(all, sent{c.request + " with " + how, c.code, conn, bufio.NewReader(conn)})
		}
	}
	for _, c := range all {
		if resp, body := answerOf(t, c.what, c.conn, c.from); resp.StatusCode != c.code {
			t.Errorf("%s: answered %d %s, want %d", c.what, resp.StatusCode, body, c.code)
		}
	}
	if took := time.Since(began); took > soon {
		t.Errorf("answered after %s", took)
	}
	// Nor are the connections held for ever, and what is left of a body is no request.
	for _, c := range all {
		if _, err := http.ReadResponse(c.from, nil); err == nil {
			t.Errorf("%s: a second answer", c.what)
		} else if ne, ok := err.(net.Error); ok && ne.Timeout() { //nolint:errorlint // it is not wrapped
			t.Errorf("%s: the connection stays open", c.what)
		}
	}
	close(hold)
	if resp, body := answerOf(t, "the request that was taken", first, bufio.NewReader(first)); resp.StatusCode != 200 || body != "1" {
		t.Errorf("the request that was taken: %d %s", resp.StatusCode, body)
	}
}

func TestARefusalLeavesTheConnectionToTheNextRequestWhenTheBodyIsThere(t *testing.T) {
	url := serve(t, &services{}, gateway.Config{})
	conn := raw(t, url, "")
	from := bufio.NewReader(conn)
	for i, rest := range []string{
		"Content-Length: 10\r\n\r\n0123456789",
		"Transfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n0\r\n\r\n",
		"Content-Length: 200000\r\n\r\n" + strings.Repeat("x", 200_000),
		"\r\n",
	} {
		if _, err := io.WriteString(conn, "POST /nope HTTP/1.1\r\nHost: h\r\n"+rest); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		if resp, body := answerOf(t, fmt.Sprint("request ", i), conn, from); resp.StatusCode != 404 || resp.Close {
			t.Errorf("request %d: %d %s, closes: %v", i, resp.StatusCode, body, resp.Close)
		}
	}
}

func TestBodiesOfEveryRouteHaveTheirTimeToArrive(t *testing.T) {
	s := &services{answer: &ingestionv1.IngestRawResponse{Status: 200, Body: []byte("1")}}
	url := serve(t, s, gateway.Config{BodyTimeout: 50 * time.Millisecond})
	reader := "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("reader:pass")) + "\r\n"
	for _, c := range []struct{ path, head, form string }{
		{"/import", "", `{"code":503,"error":"the body did not arrive in time","status":"Service Unavailable"}`},
		{"/track/", "", `{"code":503,`}, {"/engage", "", `{"code":503,`}, {"/groups", "", `{"code":503,`},
		{"/api/2.0/engage?project_id=1", reader, `{"error":"the body did not arrive in time","status":"error"}`},
		{"/api/query/cohorts/list?project_id=1", reader, `{"error":"the body did not arrive in time","status":"error"}`},
		{"/api/app/validate-project-credentials", "", `{"error":"the body did not arrive in time","status":"error"}`},
		{"/v1/projects", "Authorization: Bearer key\r\n", `{"code":14, "message":"the body did not arrive in time", "details":[`},
	} {
		for how, rest := range unfinished {
			what := c.path + " with " + how
			t.Run(what, func(t *testing.T) {
				t.Parallel()
				conn := raw(t, url, "POST "+c.path+" HTTP/1.1\r\nHost: h\r\n"+c.head+rest)
				from := bufio.NewReader(conn)
				if strings.HasPrefix(rest, "Expect") { // the handler wants the body, which is told first
					if line, err := from.ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") {
						t.Fatalf("%q, %v", line, err)
					}
					if _, err := from.ReadString('\n'); err != nil {
						t.Fatal(err)
					}
				}
				resp, body := answerOf(t, what, conn, from)
				if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.HasPrefix(squeezed(body), squeezed(c.form)) {
					t.Errorf("answered %d %v %s, want 503 %s", resp.StatusCode, resp.Header, body, c.form)
				}
			})
		}
	}
	t.Cleanup(func() {
		if s.got != nil {
			t.Error("one reached the service")
		}
	})
}

// squeezed is JSON without the spaces that protojson puts in now and then.
func squeezed(s string) string { return strings.Join(strings.Fields(s), "") }

func TestABodyOfRESTIsRefusedByWhatIsWrongWithIt(t *testing.T) {
	url := serve(t, &services{}, gateway.Config{MaxBodyBytes: 1000})
	const head = "POST /v1/projects HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer key\r\n"
	for _, c := range []struct {
		what, text string
		code       int
		say        string
	}{
		{"announced too large", "Content-Length: 1001\r\n\r\n[", 413, "request exceeds max limit of 1000 bytes"},
		{"too large", "Transfer-Encoding: chunked\r\n\r\n3e9\r\n{\"display_name\":\"" + strings.Repeat("x", 1001-17), 413, "request exceeds max limit of 1000 bytes"},
		{"broken chunks", "Transfer-Encoding: chunked\r\n\r\n2\r\n{\"\r\nZZ\r\n", 400, "the request body broke off"},
		{"no JSON", "Content-Length: 2\r\n\r\n{]", 400, "body: "},
	} {
		t.Run(c.what, func(t *testing.T) {
			conn := raw(t, url, head+c.text)
			resp, body := answerOf(t, c.what, conn, bufio.NewReader(conn))
			if resp.StatusCode != c.code || !strings.Contains(body, c.say) || strings.Contains(body, "127.0.0.1") {
				t.Errorf("answered %d %s, want %d %s", resp.StatusCode, body, c.code, c.say)
			}
		})
	}
}
