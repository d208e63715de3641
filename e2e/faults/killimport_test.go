//go:build faults

package faults

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
)

const (
	// importKills is how often an import is killed.
	importKills = 100
	// storedBefore is how many events are stored before the first kill.
	storedBefore = 5_000_000
	// recoverWithin is how long the process may take from its start until it serves.
	recoverWithin = 2 * time.Second
)

// fill stores n events of 50,000 users over 60 days.
func fill(t *testing.T, c *harness.Client, n int) {
	t.Helper()
	const batch, senders = 2000, 4
	start := time.Now().Add(-60 * 24 * time.Hour).Unix()
	batches := make(chan int)
	errs := make(chan error, senders)
	var wg sync.WaitGroup
	for range senders {
		wg.Go(func() {
			var b bytes.Buffer
			for i := range batches {
				b.Reset()
				b.WriteByte('[')
				for j := i * batch; j < min(n, (i+1)*batch); j++ {
					if b.Len() > 1 {
						b.WriteByte(',')
					}
					fmt.Fprintf(&b, `{"event":"Stored","properties":{"time":%d,"distinct_id":"s-%d","$insert_id":"s-%d","page":"/p/%d"}}`, start+int64(j%(57*86_400)), j%50_000, j, j%977)
				}
				b.WriteByte(']')
				a, err := c.Do(t.Context(), http.MethodPost, "/import?strict=1&project_id="+c.Creds.ProjectID, b.Bytes(), harness.JSONHead)
				if err == nil && a.Status != http.StatusOK {
					err = fmt.Errorf("HTTP %d %s", a.Status, a.Body)
				}
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	func() {
		defer close(batches)
		for i := range (n + batch - 1) / batch {
			select {
			case batches <- i:
			case err := <-errs:
				t.Error(err)
				return
			}
		}
	}()
	wg.Wait()
	select {
	case err := <-errs:
		t.Fatal(err)
	default:
	}
}

func TestKilledDuringImportsEveryAcknowledgedEventIsThereExactlyOnce(t *testing.T) {
	dir := t.TempDir()
	p := harness.PlainStandalone(t, dir)
	fill(t, p.Client(t), storedBefore)
	p.Kill()

	im := newImporter()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, seed))
	var took []time.Duration
	for range importKills {
		p := harness.PlainStandalone(t, dir)
		took = append(took, p.Took)
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
	if n := len(im.acked); n < importKills {
		t.Fatalf("only %d batches were acknowledged: the kills came too early to prove anything", n)
	}
	im.verify(t, harness.PlainStandalone(t, dir).Client(t), storedBefore)
	slices.Sort(took)
	t.Logf("%d kills with %d events stored: serving again after %v (median), %v (longest)", importKills, storedBefore, took[len(took)/2], took[len(took)-1])
	if took[len(took)/2] > recoverWithin {
		t.Errorf("recovery took %v, want less than %v", took[len(took)/2], recoverWithin)
	}
}
