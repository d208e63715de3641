package cohortsync_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	"github.com/cohortbridge/cohortbridge/sandbox"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/benchkit"
)

func (r *rig) dryRun(req *cohortsyncv1.DryRunSyncRequest) *cohortsyncv1.DryRunSyncResponse {
	r.t.Helper()
	req.Parent = "projects/1"
	d, err := r.Syncs.DryRunSync(r.ctx, req)
	require.NoError(r.t, err)
	require.Equal(r.t, d.GetEvaluation().GetUsers(), d.GetAdded()+d.GetUpdated()+d.GetUnchanged()+d.GetSkipped(), "every user is accounted for: %v", d)
	return d
}

// TestADryRunSaysWhatTheRunThenDoes compares, in each channel, what is said before
// with what is done after, and that saying it does nothing.
func TestADryRunSaysWhatTheRunThenDoes(t *testing.T) {
	for _, kind := range []channelKind{partner, customList, registryv1.CleverTap_CHANNEL_API_SEGMENT} {
		t.Run(kind.String(), func(t *testing.T) {
			r := newRig(t, kind, sandbox.Knobs{}, nil)
			all := r.people(1200)
			r.world.SetUser(7, benchkit.User{Properties: map[string]any{"$email": "not an address", "$first_name": "x"}})
			r.world.SetLeaf("Buy", append(all[:1000:1000], 5000)...) // 5000 is anonymous
			s := r.sync("Buy", dynamic)
			same := func(what string) *cohortsyncv1.DryRunSyncResponse {
				t.Helper()
				before := r.calls()
				d := r.dryRun(&cohortsyncv1.DryRunSyncRequest{Sync: s.GetName()})
				require.Equal(t, before, r.calls(), "nobody is called")
				got := r.ok(r.run(s))
				said := []any{d.GetFull(), d.GetEvaluation().GetUsers(), d.GetAdded(), d.GetUpdated(), d.GetRemoved(), d.GetUnchanged(), d.GetSkipped(), d.GetSkippedByReason(), d.GetCalls()}
				tot := got.GetTotals()
				did := []any{got.GetFull(), got.GetEvaluation().GetUsers(), tot.GetAdded(), tot.GetUpdated(), tot.GetRemoved(), tot.GetUnchanged(), tot.GetSkipped(), tot.GetSkippedByReason(), tot.GetCalls()}
				require.Equal(t, fmt.Sprint(said...), fmt.Sprint(did...), what)
				require.Equal(t, fmt.Sprint(d.GetWarnings()), fmt.Sprint(tot.GetWarnings()), what)
				return d
			}
			unsaved := r.dryRun(&cohortsyncv1.DryRunSyncRequest{Cohort: s.GetCohort(), Connector: "projects/1/connectors/1"})
			first := same("the first run")
			require.Equal(t, unsaved.GetAdded(), first.GetAdded(), "of a sync that is not made yet")
			require.EqualValues(t, 1, first.GetSkippedByReason()["anonymous"])
			require.Positive(t, first.GetDataPoints())
			none := same("a run without a change")
			require.Zero(t, none.GetCalls()+none.GetDataPoints())
			r.world.SetLeaf("Buy", all[10:1100]...)
			r.world.SetUser(20, benchkit.User{Properties: map[string]any{"$email": "other@example.org"}})
			r.world.SetUser(21, benchkit.User{PartnerID: "P-21", Properties: map[string]any{"$email": "user21@example.org", "$first_name": "Name21"}})
			d := same("a run with changes")
			require.Equal(t, []int64{100, 10, 2}, []int64{d.GetAdded(), d.GetRemoved(), d.GetUpdated()})
		})
	}
}

func TestADryRunSaysThatAGuardWouldHoldTheRunBack(t *testing.T) {
	r := newRig(t, partner, sandbox.Knobs{}, nil)
	all := r.people(1500)
	r.world.SetLeaf("Buy", all...)
	s := r.sync("Buy", dynamic)
	r.ok(r.run(s))
	r.world.SetLeaf("Buy", all[:100]...)
	d := r.dryRun(&cohortsyncv1.DryRunSyncRequest{Sync: s.GetName()})
	require.Contains(t, d.GetBlockedText(), "1400 of 1500")
	require.EqualValues(t, 1400, d.GetRemoved(), "and what it would do once it is approved")
	run := r.run(s)
	require.Equal(t, cohortsyncv1.Run_STATE_BLOCKED, run.GetState(), "the dry run approved nothing")
	for what, c := range map[string]struct {
		req   *cohortsyncv1.DryRunSyncRequest
		code  codes.Code
		field string
	}{
		"nothing":           {&cohortsyncv1.DryRunSyncRequest{}, codes.InvalidArgument, "sync"},
		"both":              {&cohortsyncv1.DryRunSyncRequest{Sync: s.GetName(), Cohort: s.GetCohort()}, codes.InvalidArgument, "sync"},
		"half":              {&cohortsyncv1.DryRunSyncRequest{Cohort: s.GetCohort()}, codes.InvalidArgument, "sync"},
		"another project's": {&cohortsyncv1.DryRunSyncRequest{Cohort: "projects/2/cohorts/1", Connector: "projects/1/connectors/1"}, codes.InvalidArgument, "cohort"},
		"no such sync":      {&cohortsyncv1.DryRunSyncRequest{Sync: "projects/1/syncs/999"}, codes.NotFound, ""},
		"no such connector": {&cohortsyncv1.DryRunSyncRequest{Cohort: s.GetCohort(), Connector: "projects/1/connectors/999"}, codes.NotFound, ""},
	} {
		c.req.Parent = "projects/1"
		_, err := r.Syncs.DryRunSync(r.ctx, c.req)
		require.Equal(t, c.code, status.Code(err), what)
		if c.field != "" {
			require.Equal(t, []string{c.field}, fields(t, err), what)
		}
	}
}
