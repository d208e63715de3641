package cohortsync_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	"github.com/cohortbridge/cohortbridge/sandbox"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/benchkit"
)

// deliverPath is where a channel's first batch of users goes.
var deliverPath = map[channelKind]string{partner: "/partner/mixpanel/cohort", customList: uploadPath, apiSegment: uploadPath}

// Every record code that CleverTap documents, in the channels that have records:
// only 555 is worth another try, 515 and 516 cost the field and not the user, and
// all others cost the user who has them and nobody else.
func TestEachRecordCodeHasItsOutcome(t *testing.T) {
	for _, kind := range []channelKind{customList, apiSegment} {
		t.Run(kind.String(), func(t *testing.T) {
			r, asked := newRecorded(t, kind)
			for i, code := range []int{509, 512, 513, 514, 515, 516, 517, 518, 519, 520, 522, 523, 524, 525, 526, 528, 530, 531, 532, 533, 534, 535, 555} {
				leaf := fmt.Sprint("Code ", code)
				bad, good := uint64(2*i+1), uint64(2*i+2)
				for _, u := range []uint64{bad, good} {
					r.world.SetUser(u, benchkit.User{Properties: map[string]any{"$email": "a@example.org", "$phone": "+919876543210", "$first_name": "Ann"}})
				}
				r.world.SetLeaf(leaf, bad, good)
				r.knobs(sandbox.Knobs{PartialPattern: fmt.Sprintf("^u%d$", bad), PartialCode: code})
				s := r.sync(leaf, dynamic)
				asked.take()
				run := r.run(s)
				_, by := asked.take()
				tot := run.GetTotals()
				switch code {
				case 515, 516:
					field, warning := "Email", "INVALID_EMAIL"
					if code == 516 {
						field, warning = "Phone", "INVALID_PHONE"
					}
					r.ok(run)
					require.EqualValues(t, 2, tot.GetSent(), code)
					require.Equal(t, map[string]int64{warning: 1}, tot.GetWarnings(), code)
					require.Len(t, by[uploadPath], 2, "sent again once, without the field")
					require.NotContains(t, string(by[uploadPath][1].body), `"`+field+`"`)
					require.NotContains(t, r.profile(fmt.Sprint("u", bad)), field)
					require.Equal(t, "Ann", r.profile(fmt.Sprint("u", bad))["first_name"], "the other columns are there")
					require.Contains(t, r.profile(fmt.Sprint("u", good)), field)
					require.Equal(t, r.identifiers(bad, good), r.segment(leaf))
					sent := r.outcomes(run, cohortsyncv1.RunUser_OUTCOME_SENT, 1)
					require.Len(t, sent, 2)
					require.Equal(t, []string{warning}, sent[0].GetWarnings())
					require.Empty(t, sent[1].GetWarnings())
					require.Zero(t, r.ok(r.run(s)).GetTotals().GetCalls(), "and not again by each run")
				default:
					reason := fmt.Sprint("code_", code)
					require.Equal(t, cohortsyncv1.Run_STATE_PARTIAL, run.GetState(), code)
					require.EqualValues(t, 1, tot.GetSent(), code)
					require.Equal(t, map[string]int64{reason: 1}, tot.GetFailedByReason(), code)
					failed := r.outcomes(run, cohortsyncv1.RunUser_OUTCOME_FAILED, 10)
					require.Len(t, failed, 1)
					require.Equal(t, fmt.Sprint("u", bad), failed[0].GetIdentifier())
					require.Equal(t, reason, failed[0].GetReason())
					require.Equal(t, r.identifiers(good), r.segment(leaf))
					tries := 1
					if code == 555 {
						tries = r.cfg.RetryTries
					}
					require.Len(t, by[uploadPath], tries, "code %d", code)
					for _, again := range by[uploadPath][1:] {
						require.NotContains(t, string(again.body), fmt.Sprintf(`"u%d"`, good), "only the refused record is sent again")
					}
					r.knobs(sandbox.Knobs{})
					require.EqualValues(t, 1, r.ok(r.run(s)).GetTotals().GetSent(), "the next run tries again")
					require.Equal(t, r.identifiers(bad, good), r.segment(leaf))
				}
			}
		})
	}
}

// Both fields bad, and one try only: still no reason to lose the user.
func TestAUserWithABadEmailAndPhoneIsSentWithoutThem(t *testing.T) {
	for _, kind := range []channelKind{customList, apiSegment} {
		t.Run(kind.String(), func(t *testing.T) {
			r, asked := newRecorded(t, kind)
			r.cfg.RetryTries = 1
			r.restart()
			r.world.SetUser(1, benchkit.User{Properties: map[string]any{"$email": "a@example.org", "$phone": "+919876543210"}})
			r.world.SetLeaf("Buy", 1)
			asked.answering(func(path string, body []byte) (int, string) {
				for field, code := range map[string]int{"Email": 515, "Phone": 516} {
					if path == uploadPath && bytes.Contains(body, []byte(`"`+field+`"`)) {
						return 200, fmt.Sprintf(`{"status":"fail","processed":0,"unprocessed":[{"status":"fail","code":%d,"error":"No. Skipped record number : 1"}]}`, code)
					}
				}
				return 0, ""
			})
			run := r.ok(r.run(r.sync("Buy", oneTime)))
			require.Equal(t, map[string]int64{"INVALID_EMAIL": 1, "INVALID_PHONE": 1}, run.GetTotals().GetWarnings())
			require.Equal(t, []string{"u1"}, r.segment("Buy"))
		})
	}
}

// A 2xx is no success until the body says so.
func TestAFailureWith200IsAFailure(t *testing.T) {
	eachChannel(t, func(t *testing.T, kind channelKind) {
		r := newRig(t, kind, sandbox.Knobs{FailWith200: true}, nil)
		r.world.SetLeaf("Buy", r.people(3)...)
		s := r.sync("Buy", dynamic)
		run := r.run(s)
		require.Equal(t, cohortsyncv1.Run_STATE_FAILED, run.GetState())
		require.Zero(t, run.GetTotals().GetSent())
		require.Contains(t, r.state(s).GetPause().GetText(), "The request was not processed", "in CleverTap's words")
		require.Zero(t, r.state(s).GetMembers())
	})
}

func TestTheHostOfAnotherRegionPausesTheSyncAndRefusesTheConnector(t *testing.T) {
	eachChannel(t, func(t *testing.T, kind channelKind) {
		r := newRig(t, kind, sandbox.Knobs{WrongRegion: true}, nil)
		r.world.SetLeaf("Buy", r.people(3)...)
		s := r.sync("Buy", dynamic)
		run := r.run(s)
		require.Equal(t, cohortsyncv1.Run_STATE_FAILED, run.GetState())
		got := r.state(s)
		require.Equal(t, cohortsyncv1.Sync_STATE_PAUSED, got.GetState())
		require.Equal(t, "CleverTap answered 401: Invalid Credentials", got.GetPause().GetText())
		reports := r.world.Reports()
		require.Len(t, reports, 1)
		require.Equal(t, registryv1.Connector_STATE_REFUSED, reports[0].GetState())
		require.Contains(t, reports[0].GetReason(), "Invalid Credentials")
		require.NotContains(t, r.log.String(), passcode)
	})
}

// A passcode has an end. What was confirmed before it stays confirmed, and the
// resumed sync does not send it again.
func TestAPasscodeThatExpiresInTheMiddlePausesTheSyncAndKeepsWhatWasConfirmed(t *testing.T) {
	eachChannel(t, func(t *testing.T, kind channelKind) {
		var left atomic.Int64
		left.Store(1 << 30)
		r := newRig(t, kind, sandbox.Knobs{}, func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if req.Method == http.MethodPost && left.Add(-1) < 0 {
					_, _ = io.Copy(io.Discard, req.Body)
					w.WriteHeader(http.StatusUnauthorized)
					_, _ = io.WriteString(w, `{"status":"fail","error":"Invalid Credentials","code":401}`)
					return
				}
				h.ServeHTTP(w, req)
			})
		})
		r.cfg.AccountConcurrency = 1
		r.restart()
		// Ten batches of an API segment are twenty calls, and four profiles at most
		// are written ahead of their segment's update.
		n := map[channelKind]int{partner: 5000, customList: 5000, apiSegment: 1000}[kind]
		calls := map[channelKind]int64{partner: 4, customList: 4, apiSegment: 12}[kind]
		all := r.people(uint64(n))
		r.world.SetLeaf("Buy", all[:10]...)
		s := r.sync("Buy", dynamic)
		r.ok(r.run(s))
		r.world.SetLeaf("Buy", all...)
		left.Store(calls)
		run := r.run(s)
		require.NotEqual(t, cohortsyncv1.Run_STATE_SUCCEEDED, run.GetState())
		sent := run.GetTotals().GetSent()
		require.Positive(t, sent)
		require.Less(t, sent, int64(n-10))
		require.Contains(t, r.state(s).GetPause().GetText(), "Invalid Credentials")
		left.Store(1 << 30)
		resumed, err := r.Syncs.ResumeSync(r.ctx, &cohortsyncv1.ResumeSyncRequest{Name: s.GetName()})
		require.NoError(t, err)
		done, err := r.Wait(r.ctx, resumed.GetRun().GetName())
		require.NoError(t, err)
		r.balanced(r.ok(done))
		require.False(t, done.GetFull())
		require.Equal(t, r.identifiers(all...), r.segment("Buy"))
		// The batch that was under way is repeated, and those before it are not.
		require.GreaterOrEqual(t, done.GetTotals().GetUnchanged(), 10+sent)
		require.LessOrEqual(t, done.GetTotals().GetSent(), int64(n-10)-sent)
	})
}

// A host that takes the call and never answers is given up on, tried again, and
// left to the next run: nothing hangs with it.
func TestAHostThatHangsIsLeftToTheNextRun(t *testing.T) {
	eachChannel(t, func(t *testing.T, kind channelKind) {
		var hang atomic.Bool
		r := newRig(t, kind, sandbox.Knobs{}, func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if hang.Load() && strings.HasPrefix(req.URL.Path, deliverPath[kind]) {
					_, _ = io.Copy(io.Discard, req.Body) // only then is the client's leaving noticed
					<-req.Context().Done()
					return
				}
				h.ServeHTTP(w, req)
			})
		})
		r.cfg.CallTimeout, r.cfg.RetryTries = 200*time.Millisecond, 2
		r.restart()
		hang.Store(true)
		r.world.SetLeaf("Buy", r.people(3)...)
		s := r.sync("Buy", dynamic)
		start := time.Now()
		run := r.run(s)
		require.Less(t, time.Since(start), waitFor/2)
		require.Equal(t, cohortsyncv1.Run_STATE_FAILED, run.GetState())
		require.Equal(t, "NOT_DELIVERED", run.GetReason())
		require.Contains(t, run.GetReasonText(), "no answer in time")
		for _, u := range r.outcomes(run, 0, 10) {
			require.Equal(t, cohortsyncv1.RunUser_OUTCOME_UNKNOWN, u.GetOutcome(), "asked, and no answer")
		}
		require.Equal(t, cohortsyncv1.Sync_STATE_ACTIVE, r.state(s).GetState())
		hang.Store(false)
		r.ok(r.run(s))
		require.Equal(t, []string{"u1", "u2", "u3"}, r.segment("Buy"))
	})
}

// A destination that redirects into our own network: the call with the passcode
// does not go there.
func TestARedirectToAPrivateAddressIsNotFollowed(t *testing.T) {
	eachChannel(t, func(t *testing.T, kind channelKind) {
		var inside atomic.Int32
		var self atomic.Value
		r := newRig(t, kind, sandbox.Knobs{}, func(http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if req.URL.Path == "/inside" {
					inside.Add(1)
					return
				}
				url, _ := self.Load().(string)
				http.Redirect(w, req, url+"/inside", http.StatusTemporaryRedirect)
			})
		})
		self.Store(r.url)
		r.world.SetLeaf("Buy", r.people(3)...)
		s := r.sync("Buy", dynamic)
		require.Equal(t, cohortsyncv1.Run_STATE_FAILED, r.run(s).GetState())
		require.Contains(t, r.state(s).GetPause().GetText(), "redirect")
		require.Zero(t, inside.Load())
	})
}
