package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
)

// stalled opens a connection that sends a request line, a head and the beginning of
// its body.
func stalled(t *testing.T, c *harness.Client, request string) *bufio.Reader {
	t.Helper()
	conn, err := (&net.Dialer{Timeout: time.Minute}).DialContext(t.Context(), "tcp", c.Creds.HTTPAddr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // whatever the server did with it
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "%s\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n[{", request); err != nil {
		t.Fatal(err)
	}
	return bufio.NewReader(conn)
}

// statusOf is the status of the next answer.
func statusOf(t *testing.T, from *bufio.Reader) int {
	t.Helper()
	resp, err := http.ReadResponse(from, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }() // not read
	return resp.StatusCode
}

func TestSendersThatStallTakeNoMoreThanTheirPlacesForTheirTime(t *testing.T) {
	c := harness.Standalone(t, t.TempDir(), "--max-concurrent", "2", "--body-timeout", "3s").Client(t)
	var waiting []*bufio.Reader
	answers := map[int]int{}
	first := make(chan int, 4)
	for range 4 {
		from := stalled(t, c, "POST /track HTTP/1.1")
		waiting = append(waiting, from)
	}
	for _, from := range waiting {
		go func() {
			resp, err := http.ReadResponse(from, nil)
			if err != nil {
				first <- 0
				return
			}
			_ = resp.Body.Close()
			first <- resp.StatusCode
		}()
	}
	for i := range 4 {
		code := <-first
		if answers[code]++; i < 2 && code != 429 {
			t.Errorf("answer %d is %d: the two that have a place are to wait, the others are not", i, code)
		}
	}
	if answers[429] != 2 || answers[503] != 2 {
		t.Errorf("answered %v, want two of 429 and, when their time was over, two of 503", answers)
	}
	if a := c.MustDo(t, http.MethodPost, "/track", []byte("[]"), harness.JSONHead); a.Status != 200 {
		t.Errorf("with room again: %d %s", a.Status, a.Body)
	}
}

func TestSendersThatStallDoNotHoldTheEndUp(t *testing.T) {
	p := harness.Standalone(t, t.TempDir(), "--body-timeout", "1h")
	c := p.Client(t)
	for _, request := range []string{"POST /import", "POST /v1/projects", "PUT /track", "POST /nope", "POST /api/2.0/engage?project_id=1", "POST /api/app/validate-project-credentials"} {
		from := stalled(t, c, request+" HTTP/1.1")
		if request == "POST /nope" {
			if code := statusOf(t, from); code != 404 {
				t.Errorf("%s: %d", request, code)
			}
		}
	}
	watch, err := c.Health().Watch(t.Context(), &healthv1.HealthCheckRequest{}) // never ends by itself
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	from := stalled(t, c, "POST /track HTTP/1.1\r\nExpect: 100-continue")
	for range 2 { // it is told to go on: it is being worked on
		if _, err := from.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	if err := p.End(); err != nil {
		t.Errorf("ended with %v", err)
	}
	if took := time.Since(began); took > 9*time.Second {
		t.Errorf("it took %s, with 10 s until calls are cut off", took)
	}
	if code := statusOf(t, from); code != 503 {
		t.Errorf("the sender was told %d", code)
	}
}
