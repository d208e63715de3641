package cohortsync_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	"github.com/cohortbridge/cohortbridge/sandbox"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/benchkit"
)

// faulty is a CleverTap on a bad day.
var faulty = sandbox.Knobs{Rate429: 0.2, Rate5xx: 0.2, PartialRate: 0.05, Seed: 7}

func TestRunsConvergeOnAFaultyDestination(t *testing.T) {
	eachChannel(t, func(t *testing.T, kind channelKind) {
		r := newRig(t, kind, faulty, nil)
		all := r.people(6000)
		r.world.SetLeaf("Buy", all[:5000]...)
		s := r.sync("Buy", dynamic)
		for i := range 3 {
			if i > 0 {
				r.world.SetLeaf("Buy", all[i*300:5000+i*300]...)
			}
			for range 5 {
				run := r.run(s)
				if run.GetState() == cohortsyncv1.Run_STATE_SUCCEEDED {
					break
				}
			}
			require.Equal(t, r.identifiers(all[i*300:5000+i*300]...), r.segment("Buy"))
		}
	})
}

// Random changes of membership and identifiers, faults and restarts: whenever a
// run succeeds, the segment is the cohort.
func TestSegmentFollowsAnyHistory(t *testing.T) {
	eachChannel(t, func(t *testing.T, kind channelKind) {
		for seed := range uint64(3) {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(seed, 1))
				r := newRig(t, kind, sandbox.Knobs{Seed: seed + 1}, nil)
				r.people(400)
				s := r.sync("Buy", dynamic)
				in := map[uint64]bool{}
				for step := range 12 {
					for range rnd.IntN(60) {
						u := 1 + rnd.Uint64N(400)
						in[u] = !in[u]
					}
					for range rnd.IntN(8) {
						u := 1 + rnd.Uint64N(400)
						usr := benchkit.User{Properties: map[string]any{"$email": fmt.Sprintf("m%d@example.org", rnd.IntN(1000))}}
						if rnd.IntN(2) == 0 {
							usr.PartnerID = fmt.Sprintf("ct-%d-%d", u, rnd.IntN(3))
						}
						r.world.SetUser(u, usr)
					}
					var want []uint64
					for u, yes := range in {
						if yes {
							want = append(want, u)
						}
					}
					r.world.SetLeaf("Buy", want...)
					k := sandbox.Knobs{Seed: seed*100 + uint64(step) + 1}
					if rnd.IntN(2) == 0 {
						k.Rate429, k.Rate5xx, k.PartialRate = 0.3, 0.5, 0.1
					}
					r.knobs(k)
					if rnd.IntN(4) == 0 {
						r.restart()
					}
					if run := r.run(s); run.GetState() == cohortsyncv1.Run_STATE_SUCCEEDED {
						require.Equal(t, r.identifiers(want...), r.segment("Buy"), "step %d", step)
					}
				}
				r.knobs(sandbox.Knobs{})
				r.ok(r.run(s))
				var want []uint64
				for u, yes := range in {
					if yes {
						want = append(want, u)
					}
				}
				require.Equal(t, r.identifiers(want...), r.segment("Buy"))
			})
		}
	})
}

func TestRefusedRecordsFailAloneWithTheCode(t *testing.T) {
	r := newRig(t, customList, sandbox.Knobs{PartialPattern: "^u1[0-9]$"}, nil)
	all := r.people(100)
	r.world.SetLeaf("Buy", all...)
	run := r.run(r.sync("Buy", dynamic))
	require.Equal(t, cohortsyncv1.Run_STATE_PARTIAL, run.GetState())
	require.EqualValues(t, 90, run.GetTotals().GetSent())
	require.Equal(t, map[string]int64{"code_523": 10}, run.GetTotals().GetFailedByReason())
	for _, u := range r.outcomes(run, cohortsyncv1.RunUser_OUTCOME_FAILED, 3) {
		require.Regexp(t, "^u1[0-9]$", u.GetIdentifier())
		require.Equal(t, "code_523", u.GetReason())
	}
	require.Len(t, r.segment("Buy"), 90)
}

func TestFailedEvaluationRemovesNobody(t *testing.T) {
	for name, fail := range map[string]func(r *rig){
		"error":             func(r *rig) { r.world.FailEvaluations(func() error { return status.Error(codes.Internal, "boom") }) },
		"no last message":   func(r *rig) { r.world.SetLeaf("Buy"); r.world.CutEvaluations(true) },
		"ingestion is away": func(r *rig) { r.world.FailEvaluations(func() error { return status.Error(codes.Unavailable, "away") }) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, partner, sandbox.Knobs{}, nil)
			all := r.people(50)
			r.world.SetLeaf("Buy", all...)
			s := r.sync("Buy", dynamic)
			r.ok(r.run(s))
			fail(r)
			run := r.run(s)
			require.Equal(t, cohortsyncv1.Run_STATE_FAILED, run.GetState())
			require.Equal(t, "EVALUATION_FAILED", run.GetReason())
			require.NotContains(t, run.GetReasonText(), "boom")
			require.Len(t, r.segment("Buy"), 50)
			r.world.FailEvaluations(nil)
			r.world.CutEvaluations(false)
			r.world.SetLeaf("Buy", all...)
			require.EqualValues(t, 50, r.ok(r.run(s)).GetTotals().GetUnchanged())
		})
	}
}

func TestEvaluationIsRetriedWhileIngestionIsBrieflyAway(t *testing.T) {
	r := newRig(t, partner, sandbox.Knobs{}, nil)
	r.world.SetLeaf("Buy", r.people(5)...)
	var calls atomic.Int32
	r.world.FailEvaluations(func() error {
		if calls.Add(1) < 3 {
			return status.Error(codes.Unavailable, "away")
		}
		return nil
	})
	r.ok(r.run(r.sync("Buy", oneTime)))
}

func TestShrinkIsBlockedUntilApproved(t *testing.T) {
	eachChannel(t, func(t *testing.T, kind channelKind) {
		r := newRig(t, kind, sandbox.Knobs{}, nil)
		all := r.people(1500)
		r.world.SetLeaf("Buy", all...)
		s := r.sync("Buy", dynamic)
		r.ok(r.run(s))
		r.world.SetLeaf("Buy", all[:600]...) // 60 % leave
		before := r.calls()
		run := r.run(s)
		require.Equal(t, cohortsyncv1.Run_STATE_BLOCKED, run.GetState())
		require.Equal(t, "TOO_MANY_REMOVALS", run.GetReason())
		require.Equal(t, before, r.calls())
		require.Len(t, r.segment("Buy"), 1500)
		require.EqualValues(t, 1500-900, run.GetTotals().GetEvaluated())
		require.EqualValues(t, 600, run.GetTotals().GetPending())
		require.EqualValues(t, 900, run.GetTotals().GetRemovePending())
		// Asking again neither supersedes it nor gets past the guard.
		asked, err := r.Syncs.RunSync(r.ctx, &cohortsyncv1.RunSyncRequest{Name: s.GetName(), Full: true})
		require.NoError(t, err)
		require.Equal(t, run.GetName(), asked.GetRun().GetName())
		require.Equal(t, cohortsyncv1.Run_STATE_BLOCKED, asked.GetRun().GetState())
		_, err = r.Runs.ApproveRun(r.ctx, &cohortsyncv1.ApproveRunRequest{Name: run.GetName()})
		require.NoError(t, err)
		done, err := r.Wait(r.ctx, run.GetName())
		require.NoError(t, err)
		r.balanced(r.ok(done))
		require.EqualValues(t, 900, done.GetTotals().GetRemoved())
		require.Equal(t, r.identifiers(all[:600]...), r.segment("Buy"))
		_, err = r.Runs.ApproveRun(r.ctx, &cohortsyncv1.ApproveRunRequest{Name: run.GetName()})
		require.Equal(t, codes.FailedPrecondition, status.Code(err))
	})
}

func TestRefusedCredentialsPauseTheSyncWithCleverTapsWords(t *testing.T) {
	eachChannel(t, func(t *testing.T, kind channelKind) {
		r := newRig(t, kind, sandbox.Knobs{}, nil)
		all := r.people(20)
		r.world.SetLeaf("Buy", all...)
		r.connector(1, kind, "WRONG-PASSCODE")
		s := r.sync("Buy", dynamic)
		run := r.run(s)
		require.Equal(t, cohortsyncv1.Run_STATE_FAILED, run.GetState())
		got, err := r.Syncs.GetSync(r.ctx, &cohortsyncv1.GetSyncRequest{Name: s.GetName()})
		require.NoError(t, err)
		require.Equal(t, cohortsyncv1.Sync_STATE_PAUSED, got.GetSync().GetState())
		require.Equal(t, "DESTINATION_REFUSED", got.GetSync().GetPause().GetReason())
		require.Contains(t, got.GetSync().GetPause().GetText(), "Invalid Credentials")
		require.NotContains(t, got.String(), "WRONG-PASSCODE")
		require.NotContains(t, r.log.String(), "WRONG-PASSCODE")
		require.Len(t, r.world.Reports(), 1)

		_, err = r.Syncs.RunSync(r.ctx, &cohortsyncv1.RunSyncRequest{Name: s.GetName()})
		require.Equal(t, codes.FailedPrecondition, status.Code(err))
		r.connector(1, kind, passcode)
		resumed, err := r.Syncs.ResumeSync(r.ctx, &cohortsyncv1.ResumeSyncRequest{Name: s.GetName()})
		require.NoError(t, err)
		done, err := r.Wait(r.ctx, resumed.GetRun().GetName())
		require.NoError(t, err)
		r.ok(done)
		require.Equal(t, r.identifiers(all...), r.segment("Buy"))
		// The connector works again, which is told once.
		r.world.SetLeaf("Buy", all[1:]...)
		r.ok(r.run(s))
		reports := r.world.Reports()
		require.Len(t, reports, 2)
		require.Equal(t, registryv1.Connector_STATE_CONNECTED, reports[1].GetState())
		require.Equal(t, "projects/1/connectors/1", reports[1].GetName())
	})
}

func TestDestinationThatAnswersNonsensePausesTheSync(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"HTML":       func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>hello</html>") },
		"empty body": func(http.ResponseWriter, *http.Request) {},
		"redirect": func(w http.ResponseWriter, _ *http.Request) {
			http.Redirect(w, &http.Request{}, "http://169.254.169.254/", http.StatusFound)
		},
		"not found": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) },
	} {
		t.Run(name, func(t *testing.T) {
			eachChannel(t, func(t *testing.T, kind channelKind) {
				r := newRig(t, kind, sandbox.Knobs{}, func(http.Handler) http.Handler { return answer })
				r.world.SetLeaf("Buy", r.people(3)...)
				s := r.sync("Buy", dynamic)
				run := r.run(s)
				require.Equal(t, cohortsyncv1.Run_STATE_FAILED, run.GetState())
				require.EqualValues(t, 3, run.GetTotals().GetFailed()+run.GetTotals().GetPending())
				got, err := r.Syncs.GetSync(r.ctx, &cohortsyncv1.GetSyncRequest{Name: s.GetName()})
				require.NoError(t, err)
				require.Equal(t, cohortsyncv1.Sync_STATE_PAUSED, got.GetSync().GetState())
				require.Zero(t, got.GetSync().GetMembers())
			})
		})
	}
}

func TestVanishedConnectorPausesTheSync(t *testing.T) {
	r := newRig(t, partner, sandbox.Knobs{}, nil)
	r.world.SetLeaf("Buy", r.people(3)...)
	s := r.sync("Buy", dynamic)
	r.world.DropConnector(1, 1)
	run := r.run(s)
	require.Equal(t, "CONNECTOR_MISSING", run.GetReason())
	got, err := r.Syncs.GetSync(r.ctx, &cohortsyncv1.GetSyncRequest{Name: s.GetName()})
	require.NoError(t, err)
	require.Equal(t, "CONNECTOR_MISSING", got.GetSync().GetPause().GetReason())
}

// gate lets calls through one at a time once closed is set.
type gate struct {
	h      http.Handler
	closed atomic.Bool
	waits  chan struct{}
	open   chan struct{}
	path   string
}

func newGate(path string) *gate {
	return &gate{waits: make(chan struct{}, 1000), open: make(chan struct{}), path: path}
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if g.closed.Load() && strings.HasPrefix(r.URL.Path, g.path) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		g.waits <- struct{}{}
		select {
		case <-g.open:
		case <-r.Context().Done():
			return
		}
	}
	g.h.ServeHTTP(w, r)
}

func TestCancelledRunKeepsATrueLedger(t *testing.T) {
	for name, at := range map[string]struct {
		kind channelKind
		// page is how many users a call has, flight how many calls are in flight.
		page, flight int
	}{"/partner": {partner, 1000, 15}, uploadPath: {customList, 1000, 15}, updatePath: {apiSegment, 100, 2}} {
		t.Run(name, func(t *testing.T) {
			kind, flying := at.kind, at.page*at.flight
			g := newGate(name)
			r := newRig(t, kind, sandbox.Knobs{}, func(h http.Handler) http.Handler { g.h = h; return g })
			all := r.people(uint64(flying + 5*at.page))
			r.world.SetLeaf("Buy", all[:100]...)
			s := r.sync("Buy", dynamic)
			r.ok(r.run(s))
			r.world.SetLeaf("Buy", all...)
			g.closed.Store(true)
			resp, err := r.Syncs.RunSync(r.ctx, &cohortsyncv1.RunSyncRequest{Name: s.GetName()})
			require.NoError(t, err)
			for range at.flight {
				<-g.waits
			}
			_, err = r.Runs.CancelRun(r.ctx, &cohortsyncv1.CancelRunRequest{Name: resp.GetRun().GetName()})
			require.NoError(t, err)
			g.closed.Store(false)
			close(g.open)
			run, err := r.Wait(r.ctx, resp.GetRun().GetName())
			require.NoError(t, err)
			r.balanced(run)
			require.Equal(t, cohortsyncv1.Run_STATE_CANCELLED, run.GetState())
			require.EqualValues(t, flying, run.GetTotals().GetSent(), "calls in flight finish, no other begins")
			got, err := r.Syncs.GetSync(r.ctx, &cohortsyncv1.GetSyncRequest{Name: s.GetName()})
			require.NoError(t, err)
			require.EqualValues(t, flying+100, got.GetSync().GetMembers())
			next := r.ok(r.run(s))
			require.EqualValues(t, len(all)-flying-100, next.GetTotals().GetAdded())
			require.Equal(t, r.identifiers(all...), r.segment("Buy"))
		})
	}
}

func TestRunIsResumedByTheNextProcessAtTheFirstUnconfirmedBatch(t *testing.T) {
	g := newGate("/partner")
	r := newRig(t, partner, sandbox.Knobs{}, func(h http.Handler) http.Handler { g.h = h; return g })
	all := r.people(30_000)
	r.world.SetLeaf("Buy", all...)
	s := r.sync("Buy", dynamic)
	g.closed.Store(true)
	resp, err := r.Syncs.RunSync(r.ctx, &cohortsyncv1.RunSyncRequest{Name: s.GetName()})
	require.NoError(t, err)
	for range 15 {
		<-g.waits
	}
	time.AfterFunc(50*time.Millisecond, func() { g.closed.Store(false); close(g.open) })
	start := time.Now()
	r.restart()
	run, err := r.Wait(r.ctx, resp.GetRun().GetName())
	require.NoError(t, err)
	require.Less(t, time.Since(start), 8*time.Second)
	r.balanced(r.ok(run))
	require.EqualValues(t, 2, run.GetAttempts())
	require.EqualValues(t, 30, run.GetTotals().GetCalls(), "no batch is sent twice")
	require.Equal(t, r.identifiers(all...), r.segment("Buy"))
}

func TestDeadDestinationSlowsNoOtherConnector(t *testing.T) {
	r := newRig(t, partner, sandbox.Knobs{}, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("X-Clevertap-Account-Id") == "DEAD" {
				_, _ = io.Copy(io.Discard, req.Body) // only then is the client's leaving noticed
				<-req.Context().Done()
				return
			}
			h.ServeHTTP(w, req)
		})
	})
	all := r.people(2000)
	r.world.SetLeaf("Buy", all...)
	r.world.SetLeaf("Other", all...)
	r.deadConnector(2)
	dead, err := r.CreateSync(r.ctx, "Other", 2, dynamic)
	require.NoError(t, err)
	live := r.sync("Buy", dynamic)
	resp, err := r.Syncs.RunSync(r.ctx, &cohortsyncv1.RunSyncRequest{Name: dead.GetName()})
	require.NoError(t, err)
	r.ok(r.run(live))
	d, err := r.Runs.GetRun(r.ctx, &cohortsyncv1.GetRunRequest{Name: resp.GetRun().GetName()})
	require.NoError(t, err)
	require.Less(t, d.GetRun().GetState(), cohortsyncv1.Run_STATE_SUCCEEDED, "the dead one is still trying")
	_, err = r.Runs.CancelRun(r.ctx, &cohortsyncv1.CancelRunRequest{Name: resp.GetRun().GetName()})
	require.NoError(t, err)
}

func TestAccountsLimitIsSharedByItsConnectors(t *testing.T) {
	r := newRig(t, partner, sandbox.Knobs{LatencyMS: 5}, nil)
	all := r.people(20_000)
	r.world.SetLeaf("A", all...)
	r.world.SetLeaf("B", all...)
	r.connector(2, partner, passcode)
	a, err := r.CreateSync(r.ctx, "A", 1, dynamic)
	require.NoError(t, err)
	b, err := r.CreateSync(r.ctx, "B", 2, dynamic)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { _, err := r.Run(r.ctx, a.GetName()); done <- err }()
	r.ok(r.run(b))
	require.NoError(t, <-done)
	st := get[sandbox.Statistics](r, "/sandbox/statistics")
	require.LessOrEqual(t, st.PeakInFlight["partner"], 15)
	require.Zero(t, st.Calls["/partner/mixpanel/cohort 429"])
}

// A removal that took effect without our knowing, and a user who comes back
// with nothing changed: the ledger must not take her for someone who is in.
func TestUserWhoReturnsAfterAnUnconfirmedRemovalIsSentAgain(t *testing.T) {
	var broken atomic.Bool
	r := newRig(t, partner, sandbox.Knobs{}, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if broken.Load() && strings.HasPrefix(req.URL.Path, "/partner") {
				h.ServeHTTP(httptest.NewRecorder(), req) // it works, and the answer is lost
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			h.ServeHTTP(w, req)
		})
	})
	all := r.people(10)
	r.world.SetLeaf("Buy", all...)
	s := r.sync("Buy", dynamic)
	r.ok(r.run(s))
	broken.Store(true)
	r.world.SetLeaf("Buy", all[1:]...)
	run := r.run(s)
	require.NotEqual(t, cohortsyncv1.Run_STATE_SUCCEEDED, run.GetState())
	require.EqualValues(t, 1, run.GetTotals().GetRemoveFailed())
	broken.Store(false)
	r.world.SetLeaf("Buy", all...)
	r.ok(r.run(s))
	require.Equal(t, r.identifiers(all...), r.segment("Buy"))
}

// failing answers 503 to messages with the action, without passing them on.
func failing(action *atomic.Value) func(http.Handler) http.Handler {
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			body, _ := io.ReadAll(req.Body)
			req.Body = io.NopCloser(bytes.NewReader(body))
			if a, _ := action.Load().(string); a != "" && bytes.HasPrefix(body, []byte(`{"action":"`+a+`"`)) {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			h.ServeHTTP(w, req)
		})
	}
}

func TestOldIdentifierIsRemovedLaterWhenItsRemovalFailed(t *testing.T) {
	var action atomic.Value
	r := newRig(t, partner, sandbox.Knobs{}, failing(&action))
	r.people(3)
	r.world.SetLeaf("Buy", 1, 2, 3)
	s := r.sync("Buy", dynamic)
	r.ok(r.run(s))
	r.world.SetUser(2, benchkit.User{PartnerID: "ct-two", Properties: map[string]any{"$email": "b@example.org"}})
	action.Store("remove_members")
	require.Equal(t, cohortsyncv1.Run_STATE_PARTIAL, r.run(s).GetState())
	require.Equal(t, []string{"ct-two", "u1", "u2", "u3"}, r.segment("Buy"), "the old one could not be removed")
	action.Store("")
	r.ok(r.run(s))
	require.Equal(t, []string{"ct-two", "u1", "u3"}, r.segment("Buy"))
	require.Zero(t, r.ok(r.run(s)).GetTotals().GetCalls(), "and then it is forgotten")
}

func TestFailedUpdateIsSentAgainThoughNothingChangedSince(t *testing.T) {
	var action atomic.Value
	r := newRig(t, partner, sandbox.Knobs{}, failing(&action))
	r.people(3)
	r.world.SetLeaf("Buy", 1, 2, 3)
	s := r.sync("Buy", dynamic)
	r.ok(r.run(s))
	r.world.SetUser(2, benchkit.User{Properties: map[string]any{"$email": "new@example.org"}})
	action.Store("add_members")
	require.EqualValues(t, 1, r.run(s).GetTotals().GetFailed())
	action.Store("")
	require.EqualValues(t, 1, r.ok(r.run(s)).GetTotals().GetUpdated())
	require.EqualValues(t, 3, r.ok(r.run(s)).GetTotals().GetUnchanged())
}
