package modeltest

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	"github.com/cohortbridge/cohortbridge/sandbox"
)

// check holds a finished run against the model. quiet says that nobody changed
// between the evaluation and now.
func (m *model) check(s *synced, r *cohortsyncv1.Run, quiet bool) {
	m.t.Helper()
	m.note("%s %s %v", r.GetState(), r.GetReason(), r.GetTotals())
	m.balanced(r)
	rows := m.rows(r)
	segment := m.segment(s)
	m.adds(r, rows)
	if quiet {
		m.skipped(s, r, rows)
	}
	if r.GetState() == cohortsyncv1.Run_STATE_SUCCEEDED {
		if t := r.GetTotals(); t.GetFailed()+t.GetPending()+t.GetRemoveFailed()+t.GetRemovePending() != 0 {
			m.t.Fatalf("%s succeeded with %v", r.GetName(), t)
		}
		if quiet {
			m.same("segment of "+s.leaf+" after "+r.GetName(), segment, m.members(s))
		}
	}
	m.truth(s, r, rows, segment)
}

func (m *model) balanced(r *cohortsyncv1.Run) {
	m.t.Helper()
	t := r.GetTotals()
	if t.GetEvaluated() != t.GetSent()+t.GetUnchanged()+t.GetSkipped()+t.GetFailed()+t.GetPending() || t.GetSent() != t.GetAdded()+t.GetUpdated() {
		m.t.Fatalf("%s does not add up: %v", r.GetName(), t)
	}
}

// rows reads what happened to each user, in pages of a random size.
func (m *model) rows(r *cohortsyncv1.Run) (out []*cohortsyncv1.RunUser) {
	token := ""
	size := 1 + m.rng.Int32N(100)
	for {
		resp, err := m.engine.runs.ListRunUsers(m.t.Context(), &cohortsyncv1.ListRunUsersRequest{Parent: r.GetName(), PageSize: size, PageToken: token})
		if err != nil {
			m.t.Fatal(err)
		}
		out = append(out, resp.GetUsers()...)
		if token = resp.GetNextPageToken(); token == "" {
			return out
		}
	}
}

// adds checks that the rows are the totals.
func (m *model) adds(r *cohortsyncv1.Run, rows []*cohortsyncv1.RunUser) {
	m.t.Helper()
	t := r.GetTotals()
	by := map[cohortsyncv1.RunUser_Outcome]int64{}
	seen := map[uint64]bool{}
	for _, row := range rows {
		if row.GetOperation() == cohortsyncv1.RunUser_OPERATION_REMOVE {
			continue
		}
		if seen[row.GetUserNo()] {
			m.t.Fatalf("%s has two outcomes for user %d", r.GetName(), row.GetUserNo())
		}
		seen[row.GetUserNo()] = true
		by[row.GetOutcome()]++
	}
	sent, failed := by[cohortsyncv1.RunUser_OUTCOME_SENT], by[cohortsyncv1.RunUser_OUTCOME_FAILED]+by[cohortsyncv1.RunUser_OUTCOME_UNKNOWN]
	if sent != t.GetSent() || failed != t.GetFailed() || by[cohortsyncv1.RunUser_OUTCOME_SKIPPED] != t.GetSkipped() {
		m.t.Fatalf("%s: rows %v, totals %v", r.GetName(), by, t)
	}
}

// skipped checks that exactly those were left out who have no profile.
func (m *model) skipped(s *synced, r *cohortsyncv1.Run, rows []*cohortsyncv1.RunUser) {
	m.t.Helper()
	if r.GetTotals().GetEvaluated() == 0 || r.GetTotals().GetSent()+r.GetTotals().GetUnchanged()+r.GetTotals().GetFailed()+r.GetTotals().GetSkipped() == 0 {
		return // it did not come to that
	}
	got, want := map[uint64]bool{}, 0
	for _, row := range rows {
		if row.GetOutcome() == cohortsyncv1.RunUser_OUTCOME_SKIPPED {
			if row.GetReason() != "anonymous" {
				m.t.Fatalf("%s: user %d is left out: %s", r.GetName(), row.GetUserNo(), row.GetReason())
			}
			got[row.GetUserNo()] = true
		}
	}
	for u, yes := range m.leaves[s.leaf] {
		if yes && !m.people[u-1].profile {
			if want++; !got[u] {
				m.t.Fatalf("%s: user %d has no profile and is not listed as left out", r.GetName(), u)
			}
		}
	}
	if len(got) != want {
		m.t.Fatalf("%s left out %d users, want %d", r.GetName(), len(got), want)
	}
}

// truth checks that who was reported as put in is in and who was reported as taken
// out is not, also after a run that did not get through, in the channels where each
// call has its effect at once.
func (m *model) truth(s *synced, r *cohortsyncv1.Run, rows []*cohortsyncv1.RunUser, segment []string) {
	m.t.Helper()
	if kinds[s.connector] == kinds[1] || r.GetFull() && kinds[s.connector] == kinds[0] && r.GetState() != cohortsyncv1.Run_STATE_SUCCEEDED {
		return
	}
	in := map[string]bool{}
	for _, id := range segment {
		in[id] = true
	}
	put := map[string]bool{}
	for _, row := range rows {
		if op := row.GetOperation(); op == cohortsyncv1.RunUser_OPERATION_ADD || op == cohortsyncv1.RunUser_OPERATION_UPDATE {
			put[row.GetIdentifier()] = true
			if row.GetOutcome() == cohortsyncv1.RunUser_OUTCOME_SENT && !in[row.GetIdentifier()] {
				m.t.Fatalf("%s says that %s was sent, and she is not in the segment", r.GetName(), row.GetIdentifier())
			}
		}
	}
	for _, row := range rows {
		if row.GetOperation() == cohortsyncv1.RunUser_OPERATION_REMOVE && row.GetOutcome() == cohortsyncv1.RunUser_OUTCOME_SENT && in[row.GetIdentifier()] && !put[row.GetIdentifier()] {
			m.t.Fatalf("%s says that %s was taken out, and she is in the segment", r.GetName(), row.GetIdentifier())
		}
	}
}

func (m *model) same(what string, got, want []string) {
	m.t.Helper()
	if !slices.Equal(got, want) {
		m.t.Fatalf("%s:\n got %d %v\nwant %d %v", what, len(got), got, len(want), want)
	}
}

func (m *model) get(path string, out any) {
	m.t.Helper()
	req, err := http.NewRequestWithContext(m.t.Context(), http.MethodGet, m.url+path, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	err = json.NewDecoder(resp.Body).Decode(out)
	_ = resp.Body.Close() // it is read
	if err != nil {
		m.t.Fatal(err)
	}
}

// segment is who is in a sync's segment at the destination, sorted.
func (m *model) segment(s *synced) []string {
	m.t.Helper()
	var all sandbox.Segments
	m.get("/sandbox/segments", &all)
	for _, g := range all.Segments {
		if g.Name == s.cohort && g.Type == segmentTypes[s.connector] {
			var in sandbox.Members
			m.get("/sandbox/segments/"+strconv.FormatInt(g.ID, 10)+"/members?account="+url.QueryEscape(account), &in)
			return in.Members
		}
	}
	return []string{}
}

// story replays the events that CleverTap raised of each user: they come and go in
// turn, and at the end those are in who came last.
func (m *model) story() {
	m.t.Helper()
	var got struct {
		Events []struct {
			Identity, Event string
			Properties      map[string]any
		}
	}
	m.get("/sandbox/events", &got)
	type place struct{ event, segment string }
	in := map[place]map[string]bool{}
	for _, e := range got.Events {
		name, enters := "Partner Segment Name", "Added"
		switch e.Event {
		case "Partner Sync":
		case "Segment Membership Change":
			name, enters = "Segment Name", "ADD"
		default:
			continue
		}
		p := place{e.Event, e.Properties[name].(string)}
		if in[p] == nil {
			in[p] = map[string]bool{}
		}
		enter := e.Properties["Action"] == enters
		if in[p][e.Identity] == enter {
			m.t.Fatalf("%s came or went twice in a row: %v", e.Identity, e)
		}
		in[p][e.Identity] = enter
	}
	for _, s := range m.syncs {
		if kinds[s.connector] == kinds[1] {
			continue
		}
		event := "Partner Sync"
		if kinds[s.connector] == kinds[2] {
			event = "Segment Membership Change"
		}
		var last []string
		for id, yes := range in[place{event, s.cohort}] {
			if yes {
				last = append(last, id)
			}
		}
		slices.Sort(last)
		if want := m.segment(s); len(want) > 0 || len(last) > 0 {
			m.same("who came last by the events of "+s.leaf, last, want)
		}
	}
}
