//go:build faults

package faults

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
)

// kills is how often each test of syncs kills the process.
const kills = 20

func TestKilledDuringSyncsTheSegmentEndsEqualToTheCohort(t *testing.T) {
	for _, channel := range []registryv1.CleverTap_Channel{registryv1.CleverTap_CHANNEL_PARTNER, registryv1.CleverTap_CHANNEL_CUSTOM_LIST, registryv1.CleverTap_CHANNEL_API_SEGMENT} {
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
