package cohortsync_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	"github.com/cohortbridge/cohortbridge/sandbox"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/benchkit"
)

const (
	createPath = "/api/createSegment"
	updatePath = "/api/updateSegment"
	uploadPath = "/1/upload"
)

// recorder keeps what was asked, in order, and may answer itself.
type recorder struct {
	mu     sync.Mutex
	calls  []call
	answer func(path string, body []byte) (status int, text string)
}

type call struct {
	path string
	body []byte
}

func (c *recorder) wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || strings.HasPrefix(r.URL.Path, "/sandbox/") {
			h.ServeHTTP(w, r)
			return
		}
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		c.mu.Lock()
		c.calls = append(c.calls, call{r.URL.Path, body})
		answer := c.answer
		c.mu.Unlock()
		if answer != nil {
			if status, text := answer(r.URL.Path, body); status != 0 {
				w.WriteHeader(status)
				_, _ = io.WriteString(w, text)
				return
			}
		}
		h.ServeHTTP(w, r)
	})
}

// take returns what was asked since the last time, by path, in order.
func (c *recorder) take() (paths []string, byPath map[string][]call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	byPath = map[string][]call{}
	for _, x := range c.calls {
		paths = append(paths, x.path)
		byPath[x.path] = append(byPath[x.path], x)
	}
	c.calls = nil
	return paths, byPath
}

func (c *recorder) answering(fn func(path string, body []byte) (int, string)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = fn
}

func newRecorded(t *testing.T, kind channelKind) (*rig, *recorder) {
	c := &recorder{}
	return newRig(t, kind, sandbox.Knobs{}, c.wrap), c
}

func (r *rig) state(s *cohortsyncv1.Sync) *cohortsyncv1.Sync {
	r.t.Helper()
	got, err := r.Syncs.GetSync(r.ctx, &cohortsyncv1.GetSyncRequest{Name: s.GetName()})
	require.NoError(r.t, err)
	return got.GetSync()
}

func TestAnAPISegmentIsMadeOnceBeforeTheFirstBatch(t *testing.T) {
	r, asked := newRecorded(t, apiSegment)
	all := r.people(250)
	r.world.SetLeaf("Buy", all...)
	s := r.sync("Buy", dynamic)
	run := r.ok(r.run(s))
	paths, by := asked.take()
	require.Equal(t, createPath, paths[0])
	require.Len(t, by[createPath], 1)
	require.JSONEq(t, `[{"segment_name":"Cohort of Buy","customer_segment_id":"cohortbridge_1_1"}]`, string(by[createPath][0].body))
	require.Len(t, by[updatePath], 3, "100 users a call")
	require.Len(t, by[uploadPath], 3)
	require.EqualValues(t, 7, run.GetTotals().GetCalls())

	r.world.SetLeaf("Buy", all[1:]...)
	r.ok(r.run(s))
	paths, by = asked.take()
	require.Equal(t, []string{updatePath}, paths, "who leaves has no profile written")
	require.JSONEq(t, `{"bulk_profiles":[{"user_profiles":[{"identity":"u1"}],"segments":[{"customer_segment_id":"cohortbridge_1_1","action":"REMOVE"}]}]}`, string(by[updatePath][0].body))
}

func TestAChangedColumnWritesTheProfileAndLeavesTheSegmentAlone(t *testing.T) {
	r, asked := newRecorded(t, apiSegment)
	r.people(3)
	r.world.SetLeaf("Buy", 1, 2, 3)
	s := r.sync("Buy", dynamic)
	r.ok(r.run(s))
	asked.take()
	r.world.SetUser(2, benchkit.User{Properties: map[string]any{"$email": "moved@example.org"}})
	run := r.ok(r.run(s))
	require.EqualValues(t, 1, run.GetTotals().GetUpdated())
	paths, by := asked.take()
	require.Equal(t, []string{uploadPath}, paths)
	require.Contains(t, string(by[uploadPath][0].body), "moved@example.org")
	require.Equal(t, "moved@example.org", r.profile("u2")["Email"])
}

// profile is what the sandbox has of an identity, nil when it knows none.
func (r *rig) profile(identity string) map[string]any {
	r.t.Helper()
	rec, _ := r.api(http.MethodGet, "/1/profile.json?identity="+identity, "")["record"].(map[string]any)
	data, _ := rec["profileData"].(map[string]any)
	return data
}

func (r *rig) post(path, body string) map[string]any { return r.api(http.MethodPost, path, body) }

// api makes a call to the sandbox with the account's credentials.
func (r *rig) api(method, path, body string) (out map[string]any) {
	r.t.Helper()
	req, err := http.NewRequest(method, r.url+path, strings.NewReader(body))
	require.NoError(r.t, err)
	req.Header.Set("X-Clevertap-Account-Id", account)
	req.Header.Set("X-Clevertap-Passcode", passcode)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(r.t, err)
	defer resp.Body.Close()
	require.NoError(r.t, json.NewDecoder(resp.Body).Decode(&out))
	return out
}

// Membership and column types are those the custom list has.
func TestAnAPISegmentBringsTheColumnsWithTheirTypes(t *testing.T) {
	r := newRig(t, apiSegment, sandbox.Knobs{}, nil)
	r.columns(1, apiSegment, "$email", "age", "joined", "tags", "vip")
	r.world.SetUser(1, benchkit.User{Properties: map[string]any{"$email": "a@example.org", "age": 41.5, "joined": "2026-01-02T03:04:05", "tags": []string{"x", "y"}, "vip": true}})
	r.world.SetLeaf("Buy", 1)
	r.ok(r.run(r.sync("Buy", oneTime)))
	require.Equal(t, map[string]any{"Email": "a@example.org", "age": 41.5, "joined": "$D_1767323045", "tags": []any{"x", "y"}, "vip": true}, r.profile("u1"))
	require.Equal(t, []string{"u1"}, r.segment("Buy"))
}

func TestTwoSegmentCallsAreInFlightAtMost(t *testing.T) {
	r := newRig(t, apiSegment, sandbox.Knobs{LatencyMS: 5}, nil)
	r.connector(2, apiSegment, passcode)
	all := r.people(2000)
	r.world.SetLeaf("A", all...)
	r.world.SetLeaf("B", all...)
	a, err := r.CreateSync(r.ctx, "A", 1, dynamic)
	require.NoError(t, err)
	b, err := r.CreateSync(r.ctx, "B", 2, dynamic)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { _, err := r.Run(r.ctx, a.GetName()); done <- err }()
	r.ok(r.run(b))
	require.NoError(t, <-done)
	st := get[sandbox.Statistics](r, "/sandbox/statistics")
	require.Equal(t, 2, st.PeakInFlight["update segment"], "one of three is left to the account's other jobs")
	require.Zero(t, st.Calls[updatePath+" 429"])
	require.Equal(t, r.identifiers(all...), r.segment("A"))
	require.Equal(t, r.identifiers(all...), r.segment("B"))
}

func TestAFullRunTakesOutByNameWhoIsInTheLedgerAndNotInTheCohort(t *testing.T) {
	r, asked := newRecorded(t, apiSegment)
	all := r.people(20)
	r.world.SetLeaf("Buy", all...)
	s := r.sync("Buy", dynamic)
	r.ok(r.run(s))
	asked.take()
	// One left, one has another identifier, one can't be sent any more.
	r.world.SetUser(2, benchkit.User{PartnerID: "ct-two"})
	r.world.SetUser(3, benchkit.User{PartnerID: "n/a"})
	r.world.SetLeaf("Buy", all[1:]...)
	resp, err := r.Syncs.RunSync(r.ctx, &cohortsyncv1.RunSyncRequest{Name: s.GetName(), Full: true})
	require.NoError(t, err)
	run, err := r.Wait(r.ctx, resp.GetRun().GetName())
	require.NoError(t, err)
	r.balanced(r.ok(run))
	require.EqualValues(t, 2, run.GetTotals().GetRemoved(), "a changed identifier takes nobody out of the cohort")
	require.EqualValues(t, 1, run.GetTotals().GetUpdated())
	require.Equal(t, r.identifiers(append([]uint64{2}, all[3:]...)...), r.segment("Buy"))
	_, by := asked.take()
	require.Len(t, by[createPath], 1, "a full run makes sure that the segment is there")
}

func TestARenamedCohortKeepsItsAPISegment(t *testing.T) {
	r := newRig(t, apiSegment, sandbox.Knobs{}, nil)
	r.people(3)
	r.world.SetLeaf("Buy", 1, 2)
	s := r.sync("Buy", dynamic)
	r.ok(r.run(s))
	_, err := r.Cohorts.UpdateCohort(r.ctx, &cohortsyncv1.UpdateCohortRequest{Cohort: &cohortsyncv1.Cohort{Name: s.GetCohort(), DisplayName: "Renamed"}})
	require.NoError(t, err)
	r.world.SetLeaf("Buy", 2, 3)
	run := r.ok(r.run(s))
	require.False(t, run.GetFull())
	require.Equal(t, r.identifiers(2, 3), r.segment("Buy"), "there is no call that renames: the segment stays, under its old name")
	require.Len(t, get[sandbox.Segments](r, "/sandbox/segments").Segments, 1)
}

// The answer to createSegment may be lost, or the process die before it is noted:
// it is called again, and "already exists" is as good as "made".
func TestALostAnswerToCreateSegmentIsAskedAgain(t *testing.T) {
	r := newRig(t, apiSegment, sandbox.Knobs{Rate5xx: 1, Seed: 4}, nil) // half of the calls work, and none says so
	r.world.SetLeaf("Buy", r.people(5)...)
	s := r.sync("Buy", dynamic)
	run := r.run(s)
	require.Equal(t, cohortsyncv1.Run_STATE_FAILED, run.GetState())
	require.EqualValues(t, 5, run.GetTotals().GetPending(), "nothing was sent to a segment that is not there")
	require.Zero(t, run.GetTotals().GetFailed())
	r.knobs(sandbox.Knobs{})
	next := r.ok(r.run(s))
	require.True(t, next.GetFull())
	require.Len(t, r.segment("Buy"), 5)
	st := get[sandbox.Statistics](r, "/sandbox/statistics")
	require.EqualValues(t, 1, st.Calls[createPath+" 409"], "it was there, without our knowing")
}

func TestAnAPISegmentThatIsNotEnabledPausesTheSync(t *testing.T) {
	for name, answer := range map[string]struct {
		status int
		body   string
	}{
		"403":                  {403, `{"status":"fail","error":"API segments are not enabled","code":403}`},
		"200 with fail":        {200, `{"status":"fail","error":"API segments are not enabled","code":403}`},
		"200 with fail inside": {200, `[{"status":"fail","error":"API segments are not enabled","code":403}]`},
	} {
		t.Run(name, func(t *testing.T) {
			r, asked := newRecorded(t, apiSegment)
			r.world.SetLeaf("Buy", r.people(5)...)
			asked.answering(func(path string, _ []byte) (int, string) {
				if path == createPath {
					return answer.status, answer.body
				}
				return 0, ""
			})
			s := r.sync("Buy", dynamic)
			run := r.run(s)
			require.Equal(t, cohortsyncv1.Run_STATE_FAILED, run.GetState())
			require.Contains(t, r.state(s).GetPause().GetText(), "API segments are not enabled")
			paths, _ := asked.take()
			require.Len(t, r.world.Reports(), 1, "the connector is told to be refused")
			require.Equal(t, []string{createPath}, paths, "no profile is written for a segment that is not there")
			// Enabled at last.
			asked.answering(nil)
			resumed, err := r.Syncs.ResumeSync(r.ctx, &cohortsyncv1.ResumeSyncRequest{Name: s.GetName()})
			require.NoError(t, err)
			done, err := r.Wait(r.ctx, resumed.GetRun().GetName())
			require.NoError(t, err)
			require.True(t, r.ok(done).GetFull())
			require.Len(t, r.segment("Buy"), 5)
		})
	}
}

// Somebody deletes the segment on the dashboard: updates are refused from then on.
// The sync pauses; when it is resumed, the segment is made again with everyone in.
func TestADeletedAPISegmentIsMadeAgainWhenTheSyncIsResumed(t *testing.T) {
	r, asked := newRecorded(t, apiSegment)
	all := r.people(30)
	r.world.SetLeaf("Buy", all[:20]...)
	s := r.sync("Buy", dynamic)
	r.ok(r.run(s))
	asked.take()
	r.world.SetLeaf("Buy", all[:21]...)
	asked.answering(func(path string, _ []byte) (int, string) {
		if path == updatePath {
			return 400, `{"status":"fail","error":"Segment does not exist","code":400}`
		}
		return 0, ""
	})
	r.run(s)
	require.Contains(t, r.state(s).GetPause().GetText(), "Segment does not exist")
	asked.answering(nil)
	asked.take()
	resumed, err := r.Syncs.ResumeSync(r.ctx, &cohortsyncv1.ResumeSyncRequest{Name: s.GetName()})
	require.NoError(t, err)
	done, err := r.Wait(r.ctx, resumed.GetRun().GetName())
	require.NoError(t, err)
	require.EqualValues(t, 21, r.ok(done).GetTotals().GetSent())
	paths, _ := asked.take()
	require.Equal(t, createPath, paths[0])
}

// A success says nothing of single users: what CleverTap passes over is in its
// Error Stream, which no API reads.
func TestWhomAnAPISegmentPassesOverCountsAsSent(t *testing.T) {
	r, asked := newRecorded(t, apiSegment)
	r.world.SetLeaf("Buy", r.people(3)...)
	asked.answering(func(path string, body []byte) (int, string) {
		if path == updatePath && bytes.Contains(body, []byte(`"u2"`)) {
			return 200, `{"status":"partial"}`
		}
		return 0, ""
	})
	run := r.ok(r.run(r.sync("Buy", oneTime)))
	require.EqualValues(t, 3, run.GetTotals().GetSent())
	require.Empty(t, r.segment("Buy"))
}

// Who is in a segment that is left by name only has to be known also when the sync
// that put them there is gone.
func TestANewSyncTakesOutWhomADeletedOneLeftIn(t *testing.T) {
	r := newRig(t, apiSegment, sandbox.Knobs{}, nil)
	all := r.people(300)
	r.world.SetLeaf("Buy", all[:200]...)
	first := r.sync("Buy", dynamic)
	r.ok(r.run(first))
	second := r.another(first, "projects/1/connectors/1", dynamic)
	_, err := r.Syncs.DeleteSync(r.ctx, &cohortsyncv1.DeleteSyncRequest{Name: first.GetName()})
	require.NoError(t, err)
	r.world.SetLeaf("Buy", all[50:250]...)
	run := r.ok(r.run(second))
	require.EqualValues(t, 50, run.GetTotals().GetRemoved())
	require.Equal(t, r.identifiers(all[50:250]...), r.segment("Buy"))
	require.Zero(t, r.ok(r.run(second)).GetTotals().GetCalls())
}

// The same in the middle of a run: what its batches may have put in is known.
func TestANewSyncTakesOutWhomADeletedOneWasPuttingIn(t *testing.T) {
	g := newGate(updatePath)
	r := newRig(t, apiSegment, sandbox.Knobs{}, func(h http.Handler) http.Handler { g.h = h; return g })
	all := r.people(600)
	r.world.SetLeaf("Buy", all[:500]...)
	first := r.sync("Buy", dynamic)
	second := r.another(first, "projects/1/connectors/1", dynamic)
	g.closed.Store(true)
	_, err := r.Syncs.RunSync(r.ctx, &cohortsyncv1.RunSyncRequest{Name: first.GetName()})
	require.NoError(t, err)
	<-g.waits
	<-g.waits
	_, err = r.Syncs.DeleteSync(r.ctx, &cohortsyncv1.DeleteSyncRequest{Name: first.GetName()})
	require.NoError(t, err)
	g.closed.Store(false)
	close(g.open)
	require.Eventually(t, func() bool { return len(r.segment("Buy")) >= 200 }, waitFor, tick)
	r.world.SetLeaf("Buy", all[100:600]...)
	require.Eventually(t, func() bool { return r.run(second).GetState() == cohortsyncv1.Run_STATE_SUCCEEDED }, waitFor, tick)
	require.Equal(t, r.identifiers(all[100:600]...), r.segment("Buy"))
}

// From one channel to another and back: each place is left as it was, and found so.
func TestAChangedChannelFindsItsOldSegmentAsItLeftIt(t *testing.T) {
	r := newRig(t, apiSegment, sandbox.Knobs{}, nil)
	all := r.people(40)
	r.world.SetLeaf("Buy", all[:20]...)
	s := r.sync("Buy", dynamic)
	r.ok(r.run(s))
	r.connector(1, partner, passcode)
	r.world.SetLeaf("Buy", all[10:30]...)
	r.ok(r.run(s))
	r.connector(1, apiSegment, passcode)
	r.world.SetLeaf("Buy", all[15:35]...)
	run := r.ok(r.run(s))
	require.EqualValues(t, 15, run.GetTotals().GetRemoved(), "those of the first run, not of the other channel's")
	for _, seg := range get[sandbox.Segments](r, "/sandbox/segments").Segments {
		want := r.identifiers(all[10:30]...)
		if seg.Type == "API Segments" {
			want = r.identifiers(all[15:35]...)
		}
		require.Equal(t, want, get[sandbox.Members](r, fmt.Sprintf("/sandbox/segments/%d/members", seg.ID)).Members, seg.Type)
	}
}

// An ADD that failed may or may not have worked. Writing the profile again is not
// enough for the next run.
func TestAFailedAddIsAddedAgainThoughTheProfileIsThere(t *testing.T) {
	r, asked := newRecorded(t, apiSegment)
	r.people(150)
	r.world.SetLeaf("Buy", 1, 2)
	s := r.sync("Buy", dynamic)
	r.ok(r.run(s))
	r.world.SetLeaf("Buy", 1, 2, 3)
	asked.answering(func(path string, _ []byte) (int, string) {
		if path == updatePath {
			return 503, ""
		}
		return 0, ""
	})
	run := r.run(s)
	require.EqualValues(t, 1, run.GetTotals().GetFailed())
	require.Equal(t, map[string]int64{"destination_error": 1}, run.GetTotals().GetFailedByReason())
	require.NotNil(t, r.profile("u3"))
	asked.answering(nil)
	require.EqualValues(t, 1, r.ok(r.run(s)).GetTotals().GetUpdated())
	require.Equal(t, r.identifiers(1, 2, 3), r.segment("Buy"))
	require.Zero(t, r.ok(r.run(s)).GetTotals().GetCalls())
}
