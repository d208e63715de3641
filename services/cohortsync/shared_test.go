package cohortsync_test

import (
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	"github.com/cohortbridge/cohortbridge/sandbox"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/benchkit"
)

// another makes a second sync of a sync's cohort.
func (r *rig) another(s *cohortsyncv1.Sync, connector string, mode cohortsyncv1.Sync_Mode) *cohortsyncv1.Sync {
	r.t.Helper()
	resp, err := r.Syncs.CreateSync(r.ctx, &cohortsyncv1.CreateSyncRequest{Parent: "projects/1", SkipFirstRun: true,
		Sync: &cohortsyncv1.Sync{Cohort: s.GetCohort(), Connector: connector, Mode: mode}})
	require.NoError(r.t, err)
	return resp.GetSync()
}

// Two syncs of one cohort to one segment: what a run leaves alone must be there,
// whoever put it there last.
func TestSyncsThatShareASegmentDoNotTrustEachOthersWrites(t *testing.T) {
	for name, connector := range map[string]string{"same connector": "projects/1/connectors/1", "another connector of the account": "projects/1/connectors/2"} {
		t.Run(name, func(t *testing.T) {
			eachChannel(t, func(t *testing.T, kind channelKind) {
				r := newRig(t, kind, sandbox.Knobs{}, nil)
				r.connector(2, kind, passcode)
				r.people(3)
				r.world.SetLeaf("Buy", 1, 2)
				always := r.sync("Buy", dynamic)
				r.ok(r.run(always))
				once := r.another(always, connector, oneTime)
				for range 2 {
					r.world.SetLeaf("Buy", 1)
					r.ok(r.run(once))
					require.Equal(t, r.identifiers(1), r.segment("Buy"))
					r.world.SetLeaf("Buy", 1, 2)
					run := r.ok(r.run(always))
					require.True(t, run.GetFull())
					require.Equal(t, r.identifiers(1, 2), r.segment("Buy"))
				}
				// Nobody else wrote since: back to what changed.
				r.world.SetLeaf("Buy", 1, 2, 3)
				run := r.ok(r.run(always))
				require.False(t, run.GetFull())
				require.EqualValues(t, 1, run.GetTotals().GetSent())
				require.Equal(t, r.identifiers(1, 2, 3), r.segment("Buy"))
				require.Zero(t, r.ok(r.run(always)).GetTotals().GetCalls())
			})
		})
	}
}

// Both at once, over and over: whoever ends last, the segment is the cohort
// after one more run of either.
func TestSyncsThatShareASegmentConvergeWhenTheyRunAtOnce(t *testing.T) {
	eachChannel(t, func(t *testing.T, kind channelKind) {
		r := newRig(t, kind, sandbox.Knobs{LatencyMS: 2}, nil)
		r.connector(2, kind, passcode)
		all := r.people(4000)
		r.world.SetLeaf("Buy", all[:3000]...)
		a := r.sync("Buy", dynamic)
		b := r.another(a, "projects/1/connectors/2", dynamic)
		for i := range 5 {
			want := all[i*200 : 3000+i*200]
			r.world.SetLeaf("Buy", want...)
			var runs []string
			for _, s := range []*cohortsyncv1.Sync{a, b} {
				resp, err := r.Syncs.RunSync(r.ctx, &cohortsyncv1.RunSyncRequest{Name: s.GetName()})
				require.NoError(t, err)
				runs = append(runs, resp.GetRun().GetName())
			}
			for _, name := range runs {
				run, err := r.Wait(r.ctx, name)
				require.NoError(t, err)
				r.balanced(r.ok(run))
			}
			require.Equal(t, r.identifiers(want...), r.segment("Buy"))
		}
	})
}

// What the ledger has of a user says nothing about a place where her upload failed.
func TestAMovedDestinationGetsThoseThatFailedThereAtFirst(t *testing.T) {
	r := newRig(t, customList, sandbox.Knobs{}, nil)
	all := r.people(30)
	r.world.SetLeaf("Buy", all...)
	s := r.sync("Buy", dynamic)
	r.ok(r.run(s))
	sb, err := sandbox.New(sandbox.Config{Knobs: sandbox.Knobs{PartialPattern: "^u1[0-9]$"}})
	require.NoError(t, err)
	srv := httptest.NewServer(sb.Handler())
	t.Cleanup(func() { srv.Close(); sb.Close() })
	r.url = srv.URL
	r.connector(1, customList, passcode)
	run := r.run(s)
	require.Equal(t, cohortsyncv1.Run_STATE_PARTIAL, run.GetState())
	require.EqualValues(t, 10, run.GetTotals().GetFailed())
	r.knobs(sandbox.Knobs{})
	run = r.ok(r.run(s))
	require.EqualValues(t, 10, run.GetTotals().GetSent())
	require.Equal(t, r.identifiers(all...), r.segment("Buy"))
}

// A full run of a list takes out who can't be sent any more.
func TestAFullRunTakesOutWhoIsSkippedNow(t *testing.T) {
	eachChannel(t, func(t *testing.T, kind channelKind) {
		r := newRig(t, kind, sandbox.Knobs{}, nil)
		r.people(3)
		r.world.SetLeaf("Buy", 1, 2, 3)
		s := r.sync("Buy", oneTime)
		r.ok(r.run(s))
		r.world.SetUser(2, benchkit.User{PartnerID: "n/a"})
		run := r.ok(r.run(s))
		require.True(t, run.GetFull())
		require.EqualValues(t, 1, run.GetTotals().GetSkipped())
		require.Equal(t, r.identifiers(1, 3), r.segment("Buy"))
	})
}

func TestAMovedDestinationGetsEveryone(t *testing.T) {
	eachChannel(t, func(t *testing.T, kind channelKind) {
		r := newRig(t, kind, sandbox.Knobs{}, nil)
		all := r.people(30)
		r.world.SetLeaf("Buy", all[:20]...)
		s := r.sync("Buy", dynamic)
		r.ok(r.run(s))
		sb, err := sandbox.New(sandbox.Config{})
		require.NoError(t, err)
		srv := httptest.NewServer(sb.Handler())
		t.Cleanup(func() { srv.Close(); sb.Close() })
		first := r.url
		r.url = srv.URL
		r.connector(1, kind, passcode)
		r.world.SetLeaf("Buy", all[5:25]...)
		run := r.ok(r.run(s))
		require.True(t, run.GetFull())
		require.EqualValues(t, 20, run.GetTotals().GetSent())
		require.Equal(t, r.identifiers(all[5:25]...), r.segment("Buy"))
		// And back again, where an older state is.
		r.url = first
		r.connector(1, kind, passcode)
		r.world.SetLeaf("Buy", all[5:26]...)
		r.ok(r.run(s))
		require.Equal(t, r.identifiers(all[5:26]...), r.segment("Buy"))
	})
}
