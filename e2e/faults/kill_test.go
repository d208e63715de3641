//go:build faults

package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
)

// kills is how often each test kills the process.
const kills = 20

// importer sends batches until it is told to stop and remembers which were
// acknowledged. A batch without an answer is sent again, with the same ids, as
// every client does.
type importer struct {
	mu    sync.Mutex
	next  int
	open  map[int]bool // sent, not acknowledged
	acked map[int]bool
	first chan struct{} // gets a value with each acknowledgement
}

const killBatch = 200

func (im *importer) batch(i int) []byte {
	type props struct {
		Time     int64  `json:"time"`
		ID       string `json:"distinct_id"`
		InsertID string `json:"$insert_id"`
	}
	type event struct {
		Event string `json:"event"`
		Props props  `json:"properties"`
	}
	events := make([]event, killBatch)
	base := time.Now().Truncate(24 * time.Hour).Add(-48 * time.Hour).Unix()
	for j := range events {
		n := i*killBatch + j
		events[j] = event{"Killed", props{base + int64(n%80_000), fmt.Sprintf("k-%d", n%997), fmt.Sprintf("k-%d", n)}}
	}
	b, _ := json.Marshal(events)
	return b
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

func (im *importer) result(i int, ok bool) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if ok {
		im.acked[i] = true
		select {
		case im.first <- struct{}{}:
		default:
		}
	} else {
		im.open[i] = true
	}
}

// send imports until ctx ends or the process is gone.
func (im *importer) send(ctx context.Context, c *harness.Client) {
	for ctx.Err() == nil {
		i := im.take()
		a, err := c.Do(ctx, http.MethodPost, "/import?strict=1&project_id="+c.Creds.ProjectID, im.batch(i), harness.JSONHead)
		im.result(i, err == nil && a.Status == http.StatusOK)
		if err != nil {
			return
		}
	}
}

func TestKilledDuringImportsEveryAcknowledgedEventIsThereExactlyOnce(t *testing.T) {
	dir := t.TempDir()
	im := &importer{open: map[int]bool{}, acked: map[int]bool{}, first: make(chan struct{}, 1)}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, seed))
	for range kills {
		p := harness.Standalone(t, dir)
		c := p.Client(t)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { im.send(ctx, c) })
		}
		// The random moment, once imports are under way, is what the test is about.
		select {
		case <-im.first:
		case <-t.Context().Done():
		}
		select {
		case <-time.After(time.Duration(rng.IntN(400)) * time.Millisecond):
		case <-t.Context().Done():
		}
		p.Kill()
		cancel()
		wg.Wait()
	}
	acked := len(im.acked)
	if acked < kills {
		t.Fatalf("only %d batches were acknowledged: the kills came too early to prove anything", acked)
	}
	c := harness.Standalone(t, dir).Client(t)
	seen := map[string]int{}
	for _, e := range c.Export(t) {
		seen[e.Properties["$insert_id"].(string)]++
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
		t.Fatalf("of %d acknowledged events %d are lost and %d are there more than once", acked*killBatch, lost, twice)
	}
	// What was not acknowledged is sent again and must count once, whether it had
	// been stored or not.
	for i := range im.open {
		if a := c.MustDo(t, http.MethodPost, "/import?strict=1&project_id="+c.Creds.ProjectID, im.batch(i), harness.JSONHead); a.Status != http.StatusOK {
			t.Fatalf("sent again: HTTP %d %s", a.Status, a.Body)
		}
	}
	st, err := c.Data().GetDataStatistics(t.Context(), &ingestionv1.GetDataStatisticsRequest{Parent: c.Project})
	if err != nil || st.GetEvents() != int64(im.next*killBatch) {
		t.Fatalf("%d events stored (%v), want %d", st.GetEvents(), err, im.next*killBatch)
	}
	t.Logf("%d kills, %d acknowledged events, none lost, none twice; %d batches sent again", kills, acked*killBatch, len(im.open))
}

func TestKilledDuringSyncsTheSegmentEndsEqualToTheCohort(t *testing.T) {
	for _, channel := range []registryv1.CleverTap_Channel{registryv1.CleverTap_CHANNEL_PARTNER, registryv1.CleverTap_CHANNEL_CUSTOM_LIST} {
		t.Run(channel.String(), func(t *testing.T) { killSyncs(t, channel) })
	}
}

func killSyncs(t *testing.T, channel registryv1.CleverTap_Channel) {
	const users = 8000
	sandboxAddr := harness.Start(t, "sandbox", "--addr", "127.0.0.1:0", "--latency", "40ms").Ready.SandboxAddr
	dir := t.TempDir()
	args := slices.Concat(harness.FastRetries, []string{"--allow-private-destinations"})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, seed))
	p := harness.Standalone(t, dir, args...)
	c := p.Client(t)
	c.People(t, "s", 0, users, "plan", "pro")
	connector := c.Connector(t, sandboxAddr, channel)
	cohort := c.Cohort(t, "Killed", harness.PropertyIs("plan", "pro"))
	sync, run := c.Sync(t, cohort, connector, cohortsyncv1.Sync_MODE_DYNAMIC)
	in := harness.Expect("s", 0, users)
	interrupted := 0
	for round := range kills {
		select {
		case <-time.After(time.Duration(20+rng.IntN(400)) * time.Millisecond):
		case <-t.Context().Done():
		}
		p.Kill()
		p = harness.Standalone(t, dir, args...)
		c = p.Client(t)
		r, err := c.Watch(t.Context(), run)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if r.GetState() != cohortsyncv1.Run_STATE_SUCCEEDED {
			t.Fatalf("round %d: the run that was interrupted is %s: %s", round, r.GetState(), r.GetReasonText())
		}
		if r.GetAttempts() > 1 {
			interrupted++
		}
		harness.SegmentIs(t, sandboxAddr, "Killed", in)
		// Some come, some go, some change, and the next run is killed.
		from := rng.IntN(users - 2500)
		c.People(t, "s", from, from+1200, "plan", "free")
		c.People(t, "s", from+1200, from+2400, "plan", "pro")
		for i := from; i < from+1200; i++ {
			delete(in, "s-"+strconv.Itoa(i))
		}
		for i := from + 1200; i < from+2400; i++ {
			in["s-"+strconv.Itoa(i)] = true
		}
		resp, err := c.Syncs().RunSync(t.Context(), &cohortsyncv1.RunSyncRequest{Name: sync})
		if err != nil {
			t.Fatal(err)
		}
		run = resp.GetRun().GetName()
	}
	c.MustWatch(t, run)
	harness.SegmentIs(t, sandboxAddr, "Killed", in)
	if interrupted == 0 {
		t.Error("no run was interrupted: the kills prove nothing")
	}
	t.Logf("%d kills, %d interrupted a run", kills, interrupted)
}
