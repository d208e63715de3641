package ingestion_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cohortbridge/cohortbridge/services/ingestion"
	"github.com/cohortbridge/cohortbridge/services/ingestion/benchkit"
)

// childDir, when set, makes the test binary a service that imports until it is killed.
const childDir = "INGESTION_KILL_CHILD_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := child(dir, os.Getenv("INGESTION_KILL_CHILD_RUN")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// batchOf is the events of one batch of a run; a re-send is the same events.
func batchOf(run string, n int) []props {
	out := make([]props, 50)
	for i := range out {
		// New users, devices that become users, and days in and out of memory.
		day := time.Duration(i%5) * 24 * time.Hour
		out[i] = ev("E", start.Add(-day), "", fmt.Sprintf("%s-%d-%d", run, n, i), props{"$device_id": fmt.Sprintf("d%s-%d", run, (n+i)%97)})
		if i%10 == 0 {
			out[i]["properties"].(props)["$user_id"] = fmt.Sprintf("u%s-%d", run, (n+i)%97) //nolint:forcetypeassert // made above
		}
	}
	return out
}

// child imports batches by four callers and prints the number of each one that
// was acknowledged.
func child(dir, run string) error {
	cfg := ingestion.Default()
	cfg.DataDir = dir
	cfg.HashBudget = 20_000
	svc, err := ingestion.New(context.Background(), cfg, newRegistry(), ingestion.WithClock(func() time.Time { return start }))
	if err != nil {
		return err
	}
	h := benchkit.HandlersOf(svc)
	var mu sync.Mutex
	next := 0
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				mu.Lock()
				n := next
				next++
				mu.Unlock()
				req := benchkit.ImportRequest(toJSON(nil, batchOf(run, n)), false)
				req.Authorization = basic("secret-1", "")
				if resp, err := h.Ingestion.IngestRaw(context.Background(), req); err != nil || resp.GetStatus() != 200 {
					panic(fmt.Sprint(resp, err))
				}
				mu.Lock()
				fmt.Println("acknowledged", n)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return nil
}

func TestNothingAcknowledgedIsLostOrDoubledByKilling(t *testing.T) {
	dir := t.TempDir()
	rnd := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // reproducible moments
	acknowledged := map[string][]int{}
	const runs = 8
	for r := range runs {
		run := fmt.Sprint("r", r)
		cmd := exec.Command(os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), childDir+"="+dir, "INGESTION_KILL_CHILD_RUN="+run)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Killed after some number of acknowledgements, somewhere inside the next commit.
		want := 1 + rnd.IntN(60)
		sc := bufio.NewScanner(out)
		for sc.Scan() {
			var n int
			if _, err := fmt.Sscanf(sc.Text(), "acknowledged %d", &n); err != nil {
				continue
			}
			acknowledged[run] = append(acknowledged[run], n)
			if len(acknowledged[run]) == want {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("run %d: the child ended by itself: %v", r, err)
		}
	}
	h := newHarness(t)
	h.dir = dir
	h.close()
	h.cfg.DataDir = dir
	h.open()
	count := func() map[string]int {
		got := map[string]int{}
		for _, e := range h.export(1) {
			got[e.GetInsertId()]++
		}
		return got
	}
	check := func(when string, got map[string]int) {
		t.Helper()
		for id, n := range got {
			if n != 1 {
				t.Errorf("%s: %s is stored %d times", when, id, n)
			}
		}
		for run, list := range acknowledged {
			for _, n := range list {
				for i := range 50 {
					if got[fmt.Sprintf("%s-%d-%d", run, n, i)] != 1 {
						t.Fatalf("%s: event %d of the acknowledged batch %d of %s is missing", when, i, n, run)
					}
				}
			}
		}
	}
	before := count()
	check("after the kills", before)
	// The senders never heard of the last batches and send them again.
	for run, list := range acknowledged {
		highest := 0
		for _, n := range list {
			highest = max(highest, n)
		}
		for n := max(0, highest-10); n <= highest; n++ {
			h.importStrict(1, batchOf(run, n)...)
		}
	}
	check("after sending again", count())
	if len(before) == 0 {
		t.Error("nothing was stored at all")
	}
}
