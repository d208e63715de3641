// Package server adapts the engine and its store to the gRPC contracts. It
// holds no rules of its own.
package server

import (
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	"github.com/cohortbridge/cohortbridge/platform/resource"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/channel"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/cohort"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/engine"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func evaluation(e *store.Evaluation) *cohortsyncv1.Evaluation {
	if e == nil {
		return nil
	}
	out := &cohortsyncv1.Evaluation{AsOf: stamp(e.AsOf), Users: e.Users, IdentifiedUsers: e.Identified, Duration: durationpb.New(e.Took), ProfileSeq: e.ProfileSeq}
	for _, l := range e.Leaves {
		out.Leaves = append(out.Leaves, &cohortsyncv1.LeafStatistics{Summary: l.Summary, Users: l.Users, Duration: durationpb.New(l.Took)})
	}
	return out
}

// staleAfter is how old an evaluation may be of a cohort that is not synced on a schedule.
const staleAfter = 24 * time.Hour

func freshness(c *store.Cohort, now time.Time) cohortsyncv1.Cohort_Freshness {
	limit := staleAfter
	if c.SyncInterval > 0 {
		limit = 2 * c.SyncInterval
	}
	switch {
	case c.Failed != nil:
		return cohortsyncv1.Cohort_FRESHNESS_FAILED
	case c.LastEvaluation == nil:
		return cohortsyncv1.Cohort_FRESHNESS_NEVER
	case now.Sub(c.LastEvaluation.AsOf) > limit:
		return cohortsyncv1.Cohort_FRESHNESS_STALE
	}
	return cohortsyncv1.Cohort_FRESHNESS_FRESH
}

func cohortMessage(c store.Cohort, names func(string) string, now time.Time) *cohortsyncv1.Cohort {
	failure := ""
	if c.Failed != nil {
		failure = c.Failed.ReasonText
	}
	return &cohortsyncv1.Cohort{
		Freshness: freshness(&c, now), FailureText: failure, MembersUpdateTime: stamp(c.MembersUpdated),
		Name: resource.Name("projects", c.ProjectID, "cohorts", c.ID), DisplayName: c.DisplayName, Description: c.Description, Definition: c.Definition,
		Version: c.Version, Summary: cohort.Render(c.Definition, names), LastEvaluation: evaluation(c.LastEvaluation),
		CreateTime: stamp(c.Created), UpdateTime: stamp(c.Updated), Etag: strconv.FormatInt(c.Revision, 10),
	}
}

func syncMessage(s store.Sync, last *store.Run) *cohortsyncv1.Sync {
	m := &cohortsyncv1.Sync{
		Name: resource.Name("projects", s.ProjectID, "syncs", s.ID), Cohort: resource.Name("projects", s.ProjectID, "cohorts", s.CohortID),
		Connector: resource.Name("projects", s.ProjectID, "connectors", s.ConnectorID),
		Mode:      cohortsyncv1.Sync_Mode(s.Mode), State: cohortsyncv1.Sync_State(s.State), NextRunTime: stamp(s.NextRun),
		Members: s.Ledger.Members, CreateTime: stamp(s.Created),
	}
	if s.Mode == store.Dynamic {
		m.Interval = durationpb.New(s.Interval)
	}
	if s.Pause != nil {
		m.Pause = &cohortsyncv1.Pause{Reason: s.Pause.Reason, Text: s.Pause.Text, Actor: s.Pause.Actor, Since: stamp(s.Pause.Since)}
	}
	if last != nil {
		m.LastRun = runMessage(*last)
	}
	return m
}

func runMessage(r store.Run) *cohortsyncv1.Run {
	t := r.Totals
	return &cohortsyncv1.Run{
		Name:  resource.Name("projects", r.ProjectID, "syncs", r.SyncID, "runs", r.ID),
		State: cohortsyncv1.Run_State(r.State), Trigger: cohortsyncv1.Run_Trigger(r.Trigger), Full: r.Full, Evaluation: evaluation(r.Evaluation),
		Totals: &cohortsyncv1.RunTotals{
			Evaluated: t.Evaluated, Sent: t.Sent, Unchanged: t.Unchanged, Skipped: t.Skipped, Failed: t.Failed, Pending: t.Pending,
			Added: t.Added, Updated: t.Updated, Removed: t.Removed, RemovePending: t.RemovePending, RemoveFailed: t.RemoveFailed,
			SkippedByReason: t.SkippedBy, FailedByReason: t.FailedBy, Warnings: t.Warnings, Batches: t.Batches, BatchesDone: t.BatchesDone, Calls: t.Calls,
		},
		Reason: r.Reason, ReasonText: r.ReasonText, TraceId: r.TraceID, CreateTime: stamp(r.Created), StartTime: stamp(r.Started), EndTime: stamp(r.Ended), Attempts: int32(r.Attempts),
	}
}

var operations = map[channel.Op]cohortsyncv1.RunUser_Operation{
	channel.Add: cohortsyncv1.RunUser_OPERATION_ADD, channel.Remove: cohortsyncv1.RunUser_OPERATION_REMOVE,
	channel.Update: cohortsyncv1.RunUser_OPERATION_UPDATE, 0: cohortsyncv1.RunUser_OPERATION_NONE,
}

func userMessage(u engine.UserOutcome) *cohortsyncv1.RunUser {
	return &cohortsyncv1.RunUser{UserNo: u.User, Identifier: u.Identifier, Operation: operations[u.Op],
		Outcome: cohortsyncv1.RunUser_Outcome(u.Outcome), Reason: u.Reason, Warnings: u.Warnings}
}
