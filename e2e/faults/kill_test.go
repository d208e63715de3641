//go:build faults

package faults

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
)

// kills is how often the process is killed in each channel: 102 times in all.
const kills = 34

func TestKilledDuringSyncsTheSegmentEndsEqualToTheCohort(t *testing.T) {
	for _, channel := range []registryv1.CleverTap_Channel{registryv1.CleverTap_CHANNEL_PARTNER, registryv1.CleverTap_CHANNEL_CUSTOM_LIST, registryv1.CleverTap_CHANNEL_API_SEGMENT} {
		t.Run(channel.String(), func(t *testing.T) {
			// About as long as a run takes: small calls take many of them.
			most := 130
			if channel == registryv1.CleverTap_CHANNEL_API_SEGMENT {
				most = 400
			}
			killSyncs(t, channel, most)
		})
	}
}

// killSyncs kills the process up to so many milliseconds after it was asked for a run.
func killSyncs(t *testing.T, channel registryv1.CleverTap_Channel, most int) {
	const users = 8000
	// A fifth of the calls is refused or fails, half of the failures after their effect.
	sandboxAddr := harness.Start(t, "sandbox", "--addr", "127.0.0.1:0", "--latency", "30ms", "--rate-429", "0.1", "--rate-5xx", "0.1").Ready.SandboxAddr
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
	in, before := harness.Expect("s", 0, users), map[string]bool{}
	interrupted := 0
	for round := range kills {
		select {
		case <-time.After(time.Duration(20+rng.IntN(most)) * time.Millisecond):
		case <-t.Context().Done():
		}
		p.Kill()
		p = harness.Standalone(t, dir, args...)
		c = p.Client(t)
		r, err := c.Watch(t.Context(), run)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if r.GetAttempts() > 1 {
			interrupted++
		}
		told(t, c, r, before, in)
		for again := 0; r.GetState() != cohortsyncv1.Run_STATE_SUCCEEDED; again++ {
			if again == 10 || r.GetState() == cohortsyncv1.Run_STATE_BLOCKED {
				t.Fatalf("round %d: the run is %s: %s", round, r.GetState(), r.GetReasonText())
			}
			resp, err := c.Syncs().RunSync(t.Context(), &cohortsyncv1.RunSyncRequest{Name: sync})
			if err != nil {
				t.Fatal(err)
			}
			if r, err = c.Watch(t.Context(), resp.GetRun().GetName()); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		harness.SegmentIs(t, sandboxAddr, "Killed", in)
		// Some come, some go, some change, and the next run is killed.
		before = maps.Clone(in)
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
	if interrupted == 0 {
		t.Error("no run was interrupted: the kills prove nothing")
	}
	t.Logf("%d kills, %d interrupted a run", kills, interrupted)
}

// told checks what a run that was killed says it did: nobody was counted twice, and
// nobody was put in or taken out who was not to be.
func told(t *testing.T, c *harness.Client, r *cohortsyncv1.Run, before, in map[string]bool) {
	t.Helper()
	var come, leave int64
	for id := range in {
		if !before[id] {
			come++
		}
	}
	for id := range before {
		if !in[id] {
			leave++
		}
	}
	got := r.GetTotals()
	if got.GetAdded() > come || got.GetUpdated() != 0 || got.GetRemoved() > leave || r.GetState() == cohortsyncv1.Run_STATE_SUCCEEDED && (got.GetAdded() != come || got.GetRemoved() != leave) {
		t.Fatalf("%s: %d came and %d went; it says %v", r.GetState(), come, leave, got)
	}
	var added, removed int64
	for token := ""; ; {
		resp, err := c.Runs().ListRunUsers(t.Context(), &cohortsyncv1.ListRunUsersRequest{Parent: r.GetName(), Outcome: cohortsyncv1.RunUser_OUTCOME_SENT, PageSize: 10_000, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range resp.GetUsers() {
			gone := u.GetOperation() == cohortsyncv1.RunUser_OPERATION_REMOVE
			if gone == in[u.GetIdentifier()] || gone != before[u.GetIdentifier()] {
				t.Fatalf("%s was %s, before %v, now %v", u.GetIdentifier(), u.GetOperation(), before[u.GetIdentifier()], in[u.GetIdentifier()])
			}
			if gone {
				removed++
			} else {
				added++
			}
		}
		if token = resp.GetNextPageToken(); token == "" {
			break
		}
	}
	if added != got.GetAdded() || removed != got.GetRemoved() {
		t.Fatalf("%d users listed as added and %d as removed; the totals are %v", added, removed, got)
	}
}
