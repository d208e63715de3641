package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

// endless repeats a text up to n bytes.
type endless struct {
	text string
	left int64
}

func (e *endless) Read(p []byte) (int, error) {
	if e.left <= 0 {
		return 0, io.EOF
	}
	n := 0
	for n < len(p) && e.left > 0 {
		c := copy(p[n:], e.text)
		n += c
		e.left -= int64(c)
	}
	return n, nil
}

// The bounds of the resident memory in bytes, without the race detector: by how
// much hostile bodies may make the process grow, and what many bodies may take.
const (
	maxGrowth   = 300 << 20
	maxResident = 600 << 20
)

// watchRSS returns the greatest resident memory since it was called.
func watchRSS(ctx context.Context, t *testing.T, p *harness.Process) (most func() int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	var top int64
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			if n, err := p.RSS(); err == nil {
				top = max(top, n)
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	return func() int64 { cancel(); done.Wait(); return top }
}

func TestHostileBodiesAreRefusedWithinBoundedMemory(t *testing.T) {
	p := harness.Standalone(t, t.TempDir())
	c := p.Client(t)
	path := "/import?strict=1&project_id=" + c.Creds.ProjectID
	// The first good import grows the process to its working size.
	event := func(id, more string) string {
		return fmt.Sprintf(`{"event":"e","properties":{"time":%d,"distinct_id":"u","$insert_id":"%s"%s}}`, time.Now().Unix(), id, more)
	}
	stored := 0
	good := func(what string) {
		t.Helper()
		stored++
		if a := c.MustDo(t, http.MethodPost, path, []byte("["+event(fmt.Sprint("good-", stored), "")+"]"), harness.JSONHead); a.Status != 200 {
			t.Errorf("%s: a good import afterwards: HTTP %d %s", what, a.Status, a.Body)
		}
	}
	good("at the start")
	before, err := p.RSS()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []struct {
		name, encoding string
		body           io.Reader
		times, status  int
	}{
		{"2 GB of NDJSON", "", &endless{event("x", "") + "\n", 2 << 30}, 1, 413},
		{"an array without end", "", &endless{"[", 2 << 30}, 1, 413},
		{"10 MB of brackets", "", strings.NewReader(strings.Repeat("[", 10<<20)), 8, 400},
		{"10 MB of different names", "", strings.NewReader(`[{"event":"e","properties":{` + names(9<<20) + `}}]`), 2, 400},
		{"10 MB of empty events", "", strings.NewReader("[" + strings.Repeat("{},", 3<<20) + "{}]"), 8, 413},
		{"names given twice in every event", "", strings.NewReader("[" + strings.Repeat(event("x", `,"a":1,"a":2`)+",", 1999) + event("x", `,"a":1,"a":2`) + "]"), 8, 400},
		{"nested 10,001 deep", "", strings.NewReader("[" + event("x", `,"a":`+strings.Repeat("[", 10_001)+strings.Repeat("]", 10_001)) + "]"), 8, 400},
		{"a number without bound", "", strings.NewReader("[" + event("x", `,"a":1e400`) + "]"), 1, 400},
		{"text that is not UTF-8", "", strings.NewReader("[" + event("x", ",\"a\":\"\xff\"") + "]"), 1, 400},
		{"a gzip bomb", "gzip", bytes.NewReader(zipped(t, make([]byte, 200<<20))), 16, 413},
		{"truncated gzip", "gzip", bytes.NewReader(zipped(t, []byte("["+event("x", "")+"]"))[:40]), 16, 400},
	} {
		t.Run(h.name, func(t *testing.T) {
			most := watchRSS(t.Context(), t, p)
			body, ok := h.body.(io.ReadSeeker)
			for range h.times {
				src := h.body
				if ok {
					if _, err := body.Seek(0, io.SeekStart); err != nil {
						t.Fatal(err)
					}
					b, err := io.ReadAll(body)
					if err != nil {
						t.Fatal(err)
					}
					src = bytes.NewReader(b)
				}
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.Base+path, src)
				if err != nil {
					t.Fatal(err)
				}
				req.SetBasicAuth(c.Creds.ServiceAccount, c.Creds.ServiceSecret)
				req.Header.Set("Content-Type", "application/json")
				if strings.Contains(h.name, "NDJSON") {
					req.Header.Set("Content-Type", "application/x-ndjson")
				}
				if h.encoding != "" {
					req.Header.Set("Content-Encoding", h.encoding)
				}
				resp, err := c.HTTP.Do(req)
				if err != nil {
					if ok {
						t.Fatal(err)
					}
					continue // the server closed the connection while the stream went on
				}
				text, _ := io.ReadAll(resp.Body) // shown only
				_ = resp.Body.Close()
				if resp.StatusCode != h.status {
					t.Fatalf("HTTP %d %.300s, want %d", resp.StatusCode, text, h.status)
				}
			}
			if top := most(); top-before > maxGrowth*harness.MemoryFactor(t) {
				t.Errorf("the process grew from %d to %d MB", before>>20, top>>20)
			} else {
				t.Logf("from %d to %d MB", before>>20, top>>20)
			}
			good(h.name)
		})
	}
	st, err := c.Data().GetDataStatistics(t.Context(), &ingestionv1.GetDataStatisticsRequest{Parent: c.Project})
	if err != nil || st.GetEvents() != int64(stored) {
		t.Errorf("%d events stored, want the %d good ones (%v)", st.GetEvents(), stored, err)
	}
}

// names are about n bytes of properties, all different.
func names(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, `"%d":0,`, i)
	}
	return b.String() + `"z":0`
}

// Back-pressure: many large bodies at one time are taken, or told to come back;
// none is lost after it was taken, and memory stays bounded.
func TestManyLargeBodiesAtOnceAreTakenOrToldToComeBack(t *testing.T) {
	p := harness.Standalone(t, t.TempDir())
	c := p.Client(t)
	path := "/import?strict=1&project_id=" + c.Creds.ProjectID
	most := watchRSS(t.Context(), t, p)
	body := func(n int) []byte {
		var b bytes.Buffer
		b.WriteByte('[')
		for i := range 1900 {
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, `{"event":"e","properties":{"time":%d,"distinct_id":"u%d","$insert_id":"%d-%d","a":"%s"}}`, time.Now().Unix(), i, n, i, strings.Repeat("x", 5000))
		}
		b.WriteByte(']')
		return b.Bytes()
	}
	var mu sync.Mutex
	var taken, refused int64
	var wg sync.WaitGroup
	for n := range 24 {
		b, head := body(n), map[string]string{"Content-Type": "application/json"}
		if n%2 == 0 {
			b, head["Content-Encoding"] = zipped(t, b), "gzip"
		}
		wg.Go(func() {
			a, err := c.Do(t.Context(), http.MethodPost, path, b, head)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				refused++ // answered and closed while the body was on its way
			case a.Status == 200:
				taken += 1900
			case a.Status == 429 && a.Header.Get("Retry-After") != "":
				refused++
			default:
				t.Errorf("HTTP %d %.300s", a.Status, a.Body)
			}
		})
	}
	wg.Wait()
	top := most()
	t.Logf("%d events taken, %d bodies refused, at most %d MB", taken, refused, top>>20)
	if taken == 0 {
		t.Error("none was taken")
	}
	if top > maxResident*harness.MemoryFactor(t) {
		t.Errorf("the process grew to %d MB", top>>20)
	}
	st, err := c.Data().GetDataStatistics(t.Context(), &ingestionv1.GetDataStatisticsRequest{Parent: c.Project})
	if err != nil || st.GetEvents() < taken {
		t.Errorf("%d events stored, %d were taken (%v)", st.GetEvents(), taken, err)
	}
}
