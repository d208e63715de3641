package cohortsync_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	"github.com/cohortbridge/cohortbridge/sandbox"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/benchkit"
)

func eachChannel(t *testing.T, test func(t *testing.T, kind channelKind)) {
	for name, kind := range map[string]channelKind{"PARTNER": partner, "CUSTOM_LIST": customList, "API_SEGMENT": apiSegment} {
		t.Run(name, func(t *testing.T) { test(t, kind) })
	}
}

func TestSegmentEqualsCohortAfterFirstAndLaterRuns(t *testing.T) {
	eachChannel(t, func(t *testing.T, kind channelKind) {
		r := newRig(t, kind, sandbox.Knobs{}, nil)
		all := r.people(3000)
		r.world.SetUser(7, benchkit.User{PartnerID: "ct-seven", Properties: map[string]any{"$email": "seven@example.org"}})
		r.world.SetLeaf("Buy", all[:2500]...)
		s := r.sync("Buy", dynamic)
		first := r.ok(r.run(s))
		require.True(t, first.GetFull())
		require.EqualValues(t, 2500, first.GetTotals().GetAdded())
		require.Equal(t, r.identifiers(all[:2500]...), r.segment("Buy"))

		r.world.SetLeaf("Buy", all[10:2510]...)
		second := r.ok(r.run(s))
		require.False(t, second.GetFull())
		require.EqualValues(t, 10, second.GetTotals().GetAdded())
		require.EqualValues(t, 10, second.GetTotals().GetRemoved())
		require.EqualValues(t, 2490, second.GetTotals().GetUnchanged())
		require.Equal(t, r.identifiers(all[10:2510]...), r.segment("Buy"))

		got, err := r.Syncs.GetSync(r.ctx, &cohortsyncv1.GetSyncRequest{Name: s.GetName()})
		require.NoError(t, err)
		require.EqualValues(t, 2500, got.GetSync().GetMembers())
		require.Equal(t, second.GetName(), got.GetSync().GetLastRun().GetName())
	})
}

func TestRunWithoutChangesMakesNoCall(t *testing.T) {
	eachChannel(t, func(t *testing.T, kind channelKind) {
		r := newRig(t, kind, sandbox.Knobs{}, nil)
		all := r.people(1200)
		r.world.SetLeaf("Buy", all...)
		s := r.sync("Buy", dynamic)
		r.ok(r.run(s))
		before := r.calls()
		again := r.ok(r.run(s))
		require.EqualValues(t, 1200, again.GetTotals().GetUnchanged())
		require.Zero(t, again.GetTotals().GetCalls())
		require.Equal(t, before, r.calls())
	})
}

func TestLeaverIsRemovedByTheIdentifierThatWasSent(t *testing.T) {
	eachChannel(t, func(t *testing.T, kind channelKind) {
		r := newRig(t, kind, sandbox.Knobs{}, nil)
		r.people(3)
		r.world.SetUser(1, benchkit.User{PartnerID: "old-id", Properties: map[string]any{"$email": "a@example.org"}})
		r.world.SetLeaf("Buy", 1, 2, 3)
		s := r.sync("Buy", dynamic)
		r.ok(r.run(s))
		require.Contains(t, r.segment("Buy"), "old-id")
		// She leaves, and is known by another id by now.
		r.world.SetUser(1, benchkit.User{PartnerID: "new-id", Properties: map[string]any{"$email": "a@example.org"}})
		r.world.SetLeaf("Buy", 2, 3)
		run := r.ok(r.run(s))
		require.EqualValues(t, 1, run.GetTotals().GetRemoved())
		require.Equal(t, r.identifiers(2, 3), r.segment("Buy"))
	})
}

func TestChangedIdentifierReplacesTheOldOne(t *testing.T) {
	eachChannel(t, func(t *testing.T, kind channelKind) {
		r := newRig(t, kind, sandbox.Knobs{}, nil)
		r.people(3)
		r.world.SetLeaf("Buy", 1, 2, 3)
		s := r.sync("Buy", dynamic)
		r.ok(r.run(s))
		r.world.SetUser(2, benchkit.User{PartnerID: "ct-two", Properties: map[string]any{"$email": "b@example.org"}})
		run := r.ok(r.run(s))
		require.EqualValues(t, 1, run.GetTotals().GetUpdated())
		require.EqualValues(t, 2, run.GetTotals().GetUnchanged())
		require.Zero(t, run.GetTotals().GetRemoved(), "nobody left the cohort")
		require.Equal(t, r.identifiers(1, 2, 3), r.segment("Buy"))
	})
}

func TestIdentifierThatMovesToAnotherUserStaysIn(t *testing.T) {
	eachChannel(t, func(t *testing.T, kind channelKind) {
		r := newRig(t, kind, sandbox.Knobs{}, nil)
		r.people(3)
		r.world.SetUser(1, benchkit.User{PartnerID: "shared", Properties: map[string]any{"$email": "a@example.org"}})
		r.world.SetLeaf("Buy", 1, 3)
		s := r.sync("Buy", dynamic)
		r.ok(r.run(s))
		// User 1 was merged into user 2, who brings the identifier.
		r.world.SetUser(2, benchkit.User{PartnerID: "shared", Properties: map[string]any{"$email": "a@example.org"}})
		r.world.SetLeaf("Buy", 2, 3)
		r.ok(r.run(s))
		require.Equal(t, r.identifiers(2, 3), r.segment("Buy"))
	})
}

func TestChangedColumnIsSentAgainAndOnlyThat(t *testing.T) {
	eachChannel(t, func(t *testing.T, kind channelKind) {
		r := newRig(t, kind, sandbox.Knobs{}, nil)
		all := r.people(500)
		r.world.SetLeaf("Buy", all...)
		s := r.sync("Buy", dynamic)
		r.ok(r.run(s))
		r.world.SetUser(5, benchkit.User{Properties: map[string]any{"$email": "moved@example.org", "$first_name": "Name5"}})
		r.world.SetUser(6, benchkit.User{Properties: map[string]any{"$email": "user6@example.org", "$first_name": "Name6", "Plan": "not exported"}})
		run := r.ok(r.run(s))
		require.EqualValues(t, 1, run.GetTotals().GetUpdated(), "a change of a column that is not exported is none")
		require.EqualValues(t, 499, run.GetTotals().GetUnchanged())
		require.EqualValues(t, 1, run.GetTotals().GetCalls())
	})
}

func TestWhoIsNotSentIsSkippedWithTheReason(t *testing.T) {
	eachChannel(t, func(t *testing.T, kind channelKind) {
		r := newRig(t, kind, sandbox.Knobs{}, nil)
		r.people(2)
		r.world.SetUser(3, benchkit.User{DistinctID: "NULL", Properties: map[string]any{"$email": "x@example.org"}})
		r.world.SetUser(4, benchkit.User{PartnerID: "taken", Conflict: true, Properties: map[string]any{"$email": "y@example.org"}})
		r.world.SetUser(5, benchkit.User{Properties: map[string]any{"$email": "not an address", "$phone": "12"}})
		r.world.SetUser(8, benchkit.User{PartnerID: "n/a", Properties: map[string]any{"$email": "z@example.org"}})
		r.world.SetLeaf("Buy", 1, 2, 3, 4, 5, 6, 7, 8) // 6 and 7 have no profile
		run := r.ok(r.run(r.sync("Buy", oneTime)))
		require.Equal(t, map[string]int64{"anonymous": 2, "invalid_identifier": 2, "identifier_conflict": 1}, run.GetTotals().GetSkippedByReason())
		require.Equal(t, map[string]int64{"INVALID_EMAIL": 1, "INVALID_PHONE": 1}, run.GetTotals().GetWarnings())
		require.EqualValues(t, 3, run.GetTotals().GetSent())
		require.Equal(t, []string{"u1", "u2", "u5"}, r.segment("Buy"))

		// One page at a time, and all at once, say the same.
		all := r.outcomes(run, 0, 1000)
		require.Len(t, all, 8)
		paged := r.outcomes(run, 0, 1)
		require.Len(t, paged, 8)
		for i := range all {
			require.Equal(t, all[i].GetUserNo(), paged[i].GetUserNo())
		}
		require.Len(t, r.outcomes(run, cohortsyncv1.RunUser_OUTCOME_SKIPPED, 2), 5)
		sent := r.outcomes(run, cohortsyncv1.RunUser_OUTCOME_SENT, 2)
		require.Len(t, sent, 3)
		require.Equal(t, []string{"INVALID_EMAIL", "INVALID_PHONE"}, sent[2].GetWarnings())
	})
}

func TestSegmentTypesAreThoseOfTheChannels(t *testing.T) {
	eachChannel(t, func(t *testing.T, kind channelKind) {
		r := newRig(t, kind, sandbox.Knobs{}, nil)
		r.world.SetLeaf("Buy", r.people(2)...)
		s := r.sync("Buy", oneTime)
		r.ok(r.run(s))
		segs := get[sandbox.Segments](r, "/sandbox/segments").Segments
		require.Len(t, segs, 1)
		id := s.GetCohort()[strings.LastIndex(s.GetCohort(), "/")+1:]
		want := map[channelKind][2]string{partner: {"Partner - Mixpanel", id}, customList: {"Custom - List Based", "Cohort of Buy"}, apiSegment: {"API Segments", "cohortbridge_1_" + id}}[kind]
		require.Equal(t, want, [2]string{segs[0].Type, segs[0].Key}, "a segment is known by the cohort's id, a list by its name")
		got, err := r.Syncs.GetSync(r.ctx, &cohortsyncv1.GetSyncRequest{Name: s.GetName()})
		require.NoError(t, err)
		require.Equal(t, cohortsyncv1.Sync_STATE_COMPLETED, got.GetSync().GetState())
	})
}
