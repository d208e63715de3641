//go:build faults

package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

// importer sends batches until it is told to stop and remembers which were
// acknowledged. A batch without an answer is sent again, with the same ids, as
// every client does.
type importer struct {
	base  int64
	mu    sync.Mutex
	next  int
	open  map[int]bool // sent, not acknowledged
	acked map[int]bool
	first chan struct{} // gets a value with each acknowledgement
	fails map[int]int   // answers other than 200, by status
}

func newImporter() *importer {
	return &importer{base: time.Now().Truncate(24 * time.Hour).Add(-48 * time.Hour).Unix(), open: map[int]bool{}, acked: map[int]bool{}, first: make(chan struct{}, 1), fails: map[int]int{}}
}

const (
	killBatch = 200
	killEvent = "Killed"
)

func (im *importer) batch(i int) []byte {
	type props struct {
		Time     int64  `json:"time"`
		ID       string `json:"distinct_id"`
		InsertID string `json:"$insert_id"`
		Fill     string `json:"fill"`
	}
	type event struct {
		Event string `json:"event"`
		Props props  `json:"properties"`
	}
	events := make([]event, killBatch)
	for j := range events {
		n := i*killBatch + j
		events[j] = event{killEvent, props{im.base + int64(n%80_000), fmt.Sprintf("k-%d", n%997), fmt.Sprintf("k-%d", n), filling(n)}}
	}
	b, _ := json.Marshal(events) // plain values
	return b
}

// filling is 256 characters that are the same for each event each time it is sent,
// and that no engine stores in fewer than half as many bytes.
func filling(n int) string {
	rng := rand.New(rand.NewPCG(uint64(n), 1)) //nolint:gosec // synthetic data
	var b []byte
	for range 16 {
		b = fmt.Appendf(b, "%016x", rng.Uint64())
	}
	return string(b)
}

func (im *importer) take() int {
	im.mu.Lock()
	defer im.mu.Unlock()
	for i := range im.open {
		delete(im.open, i)
		return i
	}
	im.next++
	return im.next - 1
}

func (im *importer) result(i, status int) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if status == http.StatusOK {
		im.acked[i] = true
		select {
		case im.first <- struct{}{}:
		default:
		}
		return
	}
	im.open[i] = true
	im.fails[status]++
}

func (im *importer) acknowledged() int {
	im.mu.Lock()
	defer im.mu.Unlock()
	return len(im.acked)
}

func (im *importer) post(ctx context.Context, c *harness.Client, i int) (int, error) {
	a, err := c.Do(ctx, http.MethodPost, "/import?strict=1&project_id="+c.Creds.ProjectID, im.batch(i), harness.JSONHead)
	if err != nil {
		return 0, err
	}
	return a.Status, nil
}

// send imports until ctx ends or the process is gone.
func (im *importer) send(ctx context.Context, c *harness.Client) {
	for ctx.Err() == nil {
		i := im.take()
		status, err := im.post(ctx, c, i)
		im.result(i, status)
		if err != nil {
			return
		}
	}
}

// verify fails unless every acknowledged event is stored exactly once; then it
// sends the rest again, which must count once, whether it had been stored or not.
// others are events stored besides.
func (im *importer) verify(t *testing.T, c *harness.Client, others int64) {
	t.Helper()
	seen := map[string]int{}
	for _, e := range c.Export(t, killEvent) {
		id, _ := e.Properties["$insert_id"].(string)
		seen[id]++
	}
	lost, twice := 0, 0
	for i := range im.acked {
		for j := range killBatch {
			switch seen[fmt.Sprintf("k-%d", i*killBatch+j)] {
			case 0:
				lost++
			case 1:
			default:
				twice++
			}
		}
	}
	if lost+twice > 0 {
		t.Fatalf("of %d acknowledged events %d are lost and %d are there more than once", len(im.acked)*killBatch, lost, twice)
	}
	again := len(im.open)
	for i := range im.open {
		if status, err := im.post(t.Context(), c, i); err != nil || status != http.StatusOK {
			t.Fatalf("sent again: HTTP %d, %v", status, err)
		}
		im.acked[i] = true
	}
	clear(im.open)
	st, err := c.Data().GetDataStatistics(t.Context(), &ingestionv1.GetDataStatisticsRequest{Parent: c.Project})
	if want := int64(im.next*killBatch) + others; err != nil || st.GetEvents() != want {
		t.Fatalf("%d events stored (%v), want %d", st.GetEvents(), err, want)
	}
	t.Logf("%d acknowledged events, none lost, none twice; %d batches sent again", len(im.acked)*killBatch, again)
}
