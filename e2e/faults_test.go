package e2e

import (
	"slices"
	"testing"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	"github.com/cohortbridge/cohortbridge/sandbox"
)

func TestARunConvergesAgainstAFailingCleverTapAndItsOutcomesAddUp(t *testing.T) {
	for _, channel := range []registryv1.CleverTap_Channel{registryv1.CleverTap_CHANNEL_PARTNER, registryv1.CleverTap_CHANNEL_CUSTOM_LIST, registryv1.CleverTap_CHANNEL_API_SEGMENT} {
		t.Run(channel.String(), func(t *testing.T) {
			p := harness.Standalone(t, t.TempDir(), slices.Concat(harness.FastRetries, []string{"--sandbox-addr", "127.0.0.1:0"})...)
			c := p.Client(t)
			const n = 12_000
			c.People(t, "f", 0, n, "plan", "pro")
			connector := c.Connector(t, p.Creds.SandboxAddr, channel)
			cohort := c.Cohort(t, "Faulty", harness.PropertyIs("plan", "pro"))
			if err := harness.Sandbox(t.Context(), p.Creds.SandboxAddr, "PUT", "/sandbox/knobs", sandbox.Knobs{Rate429: 0.1, Rate5xx: 0.1, PartialRate: 0.05, Seed: 3}, nil); err != nil {
				t.Fatal(err)
			}
			sync, run := c.Sync(t, cohort, connector, cohortsyncv1.Sync_MODE_DYNAMIC)
			r, err := c.Watch(t.Context(), run)
			// A batch may use up its tries; then the next run goes on where it stopped.
			for tries := 0; err == nil && r.GetState() != cohortsyncv1.Run_STATE_SUCCEEDED && tries < 5; tries++ {
				t.Logf("%s: %v", r.GetState(), r.GetTotals())
				var resp *cohortsyncv1.RunSyncResponse
				if resp, err = c.Syncs().RunSync(t.Context(), &cohortsyncv1.RunSyncRequest{Name: sync}); err == nil {
					r, err = c.Watch(t.Context(), resp.GetRun().GetName())
				}
			}
			if err != nil || r.GetState() != cohortsyncv1.Run_STATE_SUCCEEDED {
				t.Fatalf("no run succeeded: %v %v", r, err)
			}
			if tot := r.GetTotals(); tot.GetEvaluated() != n || tot.GetSent()+tot.GetUnchanged() != n {
				t.Fatalf("totals %v, want all %d sent or unchanged", tot, n)
			}
			harness.SegmentIs(t, p.Creds.SandboxAddr, "Faulty", harness.Expect("f", 0, n))

			c.People(t, "f", 0, 500, "plan", "free")
			c.People(t, "g", 0, 300, "plan", "pro")
			for range 5 {
				resp, err := c.Syncs().RunSync(t.Context(), &cohortsyncv1.RunSyncRequest{Name: sync})
				if err != nil {
					t.Fatal(err)
				}
				if r, err = c.Watch(t.Context(), resp.GetRun().GetName()); err != nil {
					t.Fatal(err)
				}
				if r.GetState() == cohortsyncv1.Run_STATE_SUCCEEDED {
					break
				}
			}
			want := harness.Expect("f", 500, n)
			for id := range harness.Expect("g", 0, 300) {
				want[id] = true
			}
			harness.SegmentIs(t, p.Creds.SandboxAddr, "Faulty", want)
			var st sandbox.Statistics
			if err := harness.Sandbox(t.Context(), p.Creds.SandboxAddr, "GET", "/sandbox/statistics", nil, &st); err != nil {
				t.Fatal(err)
			}
			refusedCalls := int64(0)
			for path, count := range st.Calls {
				if len(path) > 4 && path[len(path)-3:] >= "429" {
					refusedCalls += count
				}
			}
			if refusedCalls == 0 {
				t.Error("the sandbox refused nothing: the test proves nothing")
			}
		})
	}
}
