package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cohortbridge/cohortbridge/gateway"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
)

// post sends a body that may be endless, and waits for the answer.
func post(ctx context.Context, url string, body io.Reader, length int64) (int, http.Header, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
	if err != nil {
		return 0, nil, "", err
	}
	req.ContentLength = length
	req.Header.Set("Content-Type", "application/x-ndjson")
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return 0, nil, "", err
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, string(b), err
}

func want429(t *testing.T, what string, code int, head http.Header, body string) {
	t.Helper()
	if !strings.Contains(body, "server is busy") || strings.Contains(body, "Project") {
		t.Errorf("%s: it is the server that is busy: %s", what, body)
	}
	if code != 429 || head.Get("Retry-After") == "" || !strings.HasPrefix(body, `{"code":429,"error":"`) || !strings.Contains(body, `"status":"Too Many Requests"`) {
		t.Errorf("%s: %d %v %s, want 429 in the form of /import", what, code, head, body)
	}
}

// lines is an endless NDJSON stream of n bytes that counts what was taken of it.
type lines struct {
	left int64
	read atomic.Int64
}

func (l *lines) Read(p []byte) (int, error) {
	const line = `{"event":"E","properties":{"time":1774950000,"distinct_id":"u","$insert_id":"i"}}` + "\n"
	if l.left <= 0 {
		return 0, io.EOF
	}
	n := 0
	for n < len(p) {
		n += copy(p[n:], line)
	}
	l.left -= int64(n)
	l.read.Add(int64(n))
	return n, nil
}

func TestABodyWithoutEndIsRefusedWithinBoundedMemory(t *testing.T) {
	s := &services{answer: &ingestionv1.IngestRawResponse{Status: 200, Body: []byte("1")}}
	url := serve(t, s, gateway.Config{})
	for _, c := range []struct {
		name   string
		length int64
	}{{"2 GB of NDJSON, chunked", -1}, {"2 GB of NDJSON, announced", 2 << 30}} {
		t.Run(c.name, func(t *testing.T) {
			s.got = nil
			var before, now runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			var most uint64
			stop, done := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(done)
				tick := time.NewTicker(5 * time.Millisecond)
				defer tick.Stop()
				for {
					runtime.ReadMemStats(&now)
					most = max(most, now.HeapAlloc)
					select {
					case <-stop:
						return
					case <-tick.C:
					}
				}
			}()
			body := &lines{left: 2 << 30}
			code, _, text, err := post(t.Context(), url+"/import", body, c.length)
			close(stop)
			<-done
			// The connection may be gone before the answer is read: what counts is that no more is taken.
			if err == nil && (code != 413 || text != `{"code":413,"error":"request exceeds max limit of 16777216 bytes","status":"Request Entity Too Large"}`) {
				t.Errorf("answered %d %s", code, text)
			}
			if s.got != nil {
				t.Error("it reached the service")
			}
			if n := body.read.Load(); n > 64<<20 {
				t.Errorf("%d MB were taken", n>>20)
			}
			if grown := int64(most) - int64(before.HeapAlloc); grown > 64<<20 {
				t.Errorf("the heap grew by %d MB", grown>>20)
			}
		})
	}
}

func TestBodiesArriveWholeHoweverTheyAreSent(t *testing.T) {
	s := &services{answer: &ingestionv1.IngestRawResponse{Status: 200, Body: []byte("1")}}
	url := serve(t, s, gateway.Config{MaxBodyBytes: 3 << 20})
	for _, n := range []int{1, 256<<10 - 1, 256 << 10, 256<<10 + 1, 1 << 20, 3<<20 - 1, 3 << 20, 3<<20 + 1} {
		body := bytes.Repeat([]byte("0123456789abcdef"), n/16+1)[:n]
		for what, length := range map[string]int64{"announced": int64(n), "chunked": -1} {
			s.got = nil
			code, _, text, err := post(t.Context(), url+"/track", io.MultiReader(bytes.NewReader(body)), length)
			if n > 3<<20 {
				if code != 413 {
					t.Errorf("%d bytes, %s: %d %v", n, what, code, err)
				}
				continue
			}
			if err != nil || code != 200 || text != "1" || !bytes.Equal(s.got.GetBody(), body) {
				t.Errorf("%d bytes, %s: %d %v, %d arrived", n, what, code, err, len(s.got.GetBody()))
			}
		}
	}
}

// raw opens a connection and sends bytes of a request on it.
func raw(t *testing.T, url, text string) net.Conn {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestABodyThatBreaksOffOrStallsIsNotTaken(t *testing.T) {
	s := &services{answer: &ingestionv1.IngestRawResponse{Status: 200, Body: []byte("1")}}
	url := serve(t, s, gateway.Config{BodyTimeout: 50 * time.Millisecond})
	for what, c := range map[string]struct {
		text string
		code int
	}{
		"chunks that break off":    {"POST /import HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}\n{}\r\nZZ\r\n", 400},
		"a body that stalls":       {"POST /import HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n{}", 503},
		"chunks that stall":        {"POST /import HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", 503},
		"a body that never starts": {"POST /import HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n", 503},
	} {
		resp, err := http.ReadResponse(bufio.NewReader(raw(t, url, c.text)), nil)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != c.code || (resp.Header.Get("Retry-After") != "") != (c.code == 503) {
			t.Errorf("%s: %d %v, want %d", what, resp.StatusCode, resp.Header, c.code)
		}
		if s.got != nil {
			t.Errorf("%s: reached the service", what)
		}
	}
}

func TestTheGatewayRefusesMoreThanItsShareBeforeReadingIt(t *testing.T) {
	hold := make(chan struct{})
	in := make(chan struct{}, 10)
	s := &services{answer: &ingestionv1.IngestRawResponse{Status: 200, Body: []byte("1")}, wait: func() { in <- struct{}{}; <-hold }}
	for _, c := range []struct {
		name string
		cfg  gateway.Config
		// tight is what does not fit beside a request of half a megabyte, as far as it is
		// sent: it must be refused without the rest.
		tight []string
	}{
		{"requests", gateway.Config{MaxConcurrent: 1, BodyTimeout: time.Hour}, []string{
			"Content-Length: 1000\r\n\r\n[{", "Content-Length: 1000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n2\r\n[{\r\n", "Content-Length: 2\r\n\r\n{}",
		}},
		{"bytes", gateway.Config{MaxInFlightBytes: 1 << 20, BodyTimeout: time.Hour}, []string{
			"Content-Length: 15000000\r\n\r\n" + strings.Repeat("x", 600_000),
			"Transfer-Encoding: chunked\r\n\r\n927c0\r\n" + strings.Repeat("x", 600_000),
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			hold = make(chan struct{})
			url := serve(t, s, c.cfg)
			first := make(chan error, 1)
			go func() {
				code, _, text, err := post(t.Context(), url+"/import", &lines{left: 500_000}, -1)
				if err == nil && (code != 200 || text != "1") {
					err = fmt.Errorf("answered %d %s", code, text)
				}
				first <- err
			}()
			<-in
			for i, rest := range c.tight {
				what := fmt.Sprint("beside another, ", i)
				conn := raw(t, url, "POST /track/ HTTP/1.1\r\nHost: h\r\n"+rest)
				resp, text := answerOf(t, what, conn, bufio.NewReader(conn))
				want429(t, what, resp.StatusCode, resp.Header, text)
			}
			close(hold)
			if err := <-first; err != nil {
				t.Error(err)
			}
			if code, _, text, err := post(t.Context(), url+"/track/", strings.NewReader("{}"), 2); err != nil || code != 200 {
				t.Errorf("with room again: %d %s %v", code, text, err)
			}
			<-in
		})
	}
}

func TestABrowserCanReadEveryAnswerAlsoARefusal(t *testing.T) {
	s := &services{}
	url := serve(t, s, gateway.Config{MaxBodyBytes: 100})
	for what, c := range map[string]struct {
		method, body string
		answer       *ingestionv1.IngestRawResponse
		err          error
		code         int
	}{
		"success":             {"POST", "{}", &ingestionv1.IngestRawResponse{Status: 200}, nil, 200},
		"bad data":            {"POST", "{}", &ingestionv1.IngestRawResponse{Status: 400}, nil, 400},
		"no credential":       {"POST", "{}", &ingestionv1.IngestRawResponse{Status: 401}, nil, 401},
		"too large":           {"POST", strings.Repeat("x", 101), nil, nil, 413},
		"another encoding":    {"POST", "{}", &ingestionv1.IngestRawResponse{Status: 415}, nil, 415},
		"a full queue":        {"POST", "{}", nil, fault.New(fault.Exhausted, "QUEUE_FULL", "full"), 429},
		"ingestion is away":   {"POST", "{}", nil, status.Error(codes.Unavailable, "x"), 503},
		"ingestion is broken": {"POST", "{}", nil, status.Error(codes.Internal, "x"), 500},
		"another method":      {"PUT", "{}", nil, nil, 405},
	} {
		s.answer, s.err = c.answer, c.err
		resp, _ := call(t, c.method, url+"/track/", c.body, map[string]string{"Origin": "https://shop.example"})
		if resp.StatusCode != c.code || resp.Header.Get("Access-Control-Allow-Origin") != "https://shop.example" || resp.Header.Get("Access-Control-Allow-Credentials") != "true" || resp.Header.Get("Vary") != "Origin" {
			t.Errorf("%s: %d %v", what, resp.StatusCode, resp.Header)
		}
	}
	s.answer, s.err = &ingestionv1.IngestRawResponse{Status: 200}, nil
	if resp, _ := call(t, "GET", url+"/track/?data=e30", "", nil); resp.Header.Get("Access-Control-Allow-Origin") != "" || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("without an origin: %v", resp.Header)
	}
}

func TestSendersCanCheckTheirProjectCredentials(t *testing.T) {
	s := &services{token: "tok", secret: "hush"}
	url := serve(t, s, gateway.Config{})
	const invalid = `{"error":"Invalid credentials","status":"error"}` + "\n"
	for _, c := range []struct {
		name, body string
		code       int
		want       string
	}{
		{"token and secret", `{"api_secret":"hush","project_token":"tok"}`, 200, `{"status":"ok"}` + "\n"},
		{"token alone", `{"project_token":"tok"}`, 200, `{"status":"ok"}` + "\n"},
		{"wrong token", `{"project_token":"nope"}`, 401, invalid},
		{"wrong secret", `{"api_secret":"nope","project_token":"tok"}`, 401, invalid},
		{"no token", `{"api_secret":"hush"}`, 401, invalid},
		{"no JSON", `project_token=tok`, 400, `{"error":"the body must be a JSON object with project_token and api_secret","status":"error"}` + "\n"},
		{"a token without end", `{"project_token":"` + strings.Repeat("x", 1<<20) + `"}`, 400, `{"error":"the body must be a JSON object with project_token and api_secret","status":"error"}` + "\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, slash := range []string{"", "/"} {
				// fetch labels a text body so; Segment sets no type of its own.
				resp, body := call(t, "POST", url+"/api/app/validate-project-credentials"+slash, c.body, map[string]string{"Content-Type": "text/plain;charset=UTF-8"})
				if resp.StatusCode != c.code || body != c.want || resp.Header.Get("Content-Type") != "application/json" {
					t.Errorf("answered %d %v %q, want %d %q", resp.StatusCode, resp.Header, body, c.code, c.want)
				}
			}
		})
	}
	s.err = status.Error(codes.Unavailable, "x")
	if resp, body := call(t, "POST", url+"/api/app/validate-project-credentials/", `{"project_token":"tok"}`, nil); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("when nobody can tell: %d %s", resp.StatusCode, body)
	}
}

func (s *services) ExportEvents(_ *ingestionv1.ExportEventsRequest, st grpc.ServerStreamingServer[ingestionv1.ExportEventsResponse]) error {
	return st.Send(&ingestionv1.ExportEventsResponse{Events: []*ingestionv1.ExportedEvent{{
		Event: "E", Time: timestamppb.New(time.UnixMilli(1_774_950_000_123)), DistinctId: "u", InsertId: "i", ProcessingTime: timestamppb.New(time.UnixMilli(1_774_950_111_456)),
		PropertiesJson: `{"a":1,"$mp_api_endpoint":"h","$mp_event_size":90}`,
	}}})
}

func TestTheRawExportHasTheTimesOfProcessing(t *testing.T) {
	url := serve(t, &services{}, gateway.Config{})
	resp, body := call(t, "GET", url+"/api/2.0/export?project_id=1&from_date=2026-03-31&to_date=2026-03-31", "", map[string]string{"Authorization": "Bearer key"})
	const want = `{"event":"E","properties":{"$insert_id":"i","$mp_api_endpoint":"h","$mp_api_timestamp_ms":1774950111456,"$mp_event_size":90,"a":1,"distinct_id":"u","mp_processing_time_ms":1774950111456,"time":1774950000}}` + "\n"
	if resp.StatusCode != 200 || body != want {
		t.Errorf("exported %d %s, want %s", resp.StatusCode, body, want)
	}
}

func TestAnExportThatCantBeFilteredAsAskedIsRefused(t *testing.T) {
	url := serve(t, &services{}, gateway.Config{}) + "/api/2.0/export?from_date=2026-03-31&to_date=2026-03-31"
	for _, c := range []struct{ name, query, want string }{
		{"no project", "", "project_id"},
		{"event no list", "&project_id=1&event=E", "event"},
		{"limit out of range", "&project_id=1&limit=100001", "limit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp, body := call(t, "GET", url+c.query, "", map[string]string{"Authorization": "Bearer key"})
			if resp.StatusCode != 400 || !strings.Contains(body, c.want) {
				t.Errorf("answered %d %s", resp.StatusCode, body)
			}
		})
	}
}
