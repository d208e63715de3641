package cohortsync_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	"github.com/cohortbridge/cohortbridge/sandbox"

	"github.com/cohortbridge/cohortbridge/services/cohortsync"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/benchkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	account  = "SBX-000-000Z"
	passcode = "SAN-DBO-XXPC"
	dynamic  = cohortsyncv1.Sync_MODE_DYNAMIC
	oneTime  = cohortsyncv1.Sync_MODE_ONE_TIME
)

type channelKind = registryv1.CleverTap_Channel

const (
	partner    = registryv1.CleverTap_CHANNEL_PARTNER
	customList = registryv1.CleverTap_CHANNEL_CUSTOM_LIST
	apiSegment = registryv1.CleverTap_CHANNEL_API_SEGMENT
)

// rig is a running system with a sandbox as its CleverTap.
type rig struct {
	t   *testing.T
	ctx context.Context
	*benchkit.System
	cfg   cohortsync.Config
	world *benchkit.World
	url   string
	log   *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func testConfig(t *testing.T) cohortsync.Config {
	cfg := cohortsync.Default()
	cfg.DataDir = t.TempDir()
	cfg.AllowPrivateDestinations = true
	cfg.RetryBackoff, cfg.RetryMaxBackoff, cfg.RetryBudget = 5*time.Millisecond, 50*time.Millisecond, 10*time.Second
	cfg.ThrottleBackoff, cfg.ThrottleBudget = 5*time.Millisecond, 30*time.Second
	cfg.CallTimeout = 10 * time.Second
	cfg.Poll = 10 * time.Millisecond
	return cfg
}

// newRig starts a system whose connector 1 goes to handler, or to a sandbox with the knobs.
func newRig(t *testing.T, kind channelKind, knobs sandbox.Knobs, wrap func(http.Handler) http.Handler) *rig {
	t.Helper()
	sb, err := sandbox.New(sandbox.Config{Knobs: knobs})
	require.NoError(t, err)
	h := sb.Handler()
	if wrap != nil {
		h = wrap(h)
	}
	srv := httptest.NewServer(h)
	r := &rig{t: t, ctx: t.Context(), world: benchkit.NewWorld(), url: srv.URL, cfg: testConfig(t), log: &syncBuffer{}}
	t.Cleanup(func() { srv.Close(); sb.Close(); http.DefaultClient.CloseIdleConnections() })
	r.connector(1, kind, passcode)
	r.start()
	t.Cleanup(func() { require.NoError(t, r.Close(context.Background())) })
	return r
}

func (r *rig) connector(id int64, kind channelKind, pass string) {
	r.world.SetConnector(1, id, &registryv1.CleverTap{AccountId: account, Region: "eu1", HostUrl: r.url, PartnerUrl: r.url + "/partner/mixpanel/cohort", Channel: kind, AdminEmail: "admin@example.org"}, pass)
}

// columns makes a connector that exports the properties under their own names.
func (r *rig) columns(id int64, kind channelKind, properties ...string) {
	ct := &registryv1.CleverTap{AccountId: account, Region: "eu1", HostUrl: r.url, PartnerUrl: r.url + "/partner/mixpanel/cohort", Channel: kind, AdminEmail: "admin@example.org"}
	for _, p := range properties {
		ct.Columns = append(ct.Columns, &registryv1.Column{Property: p})
	}
	r.world.SetConnector(1, id, ct, passcode)
}

// How long something may take that happens soon, and how often it is looked for.
const waitFor, tick = 30 * time.Second, 10 * time.Millisecond

func (r *rig) start() {
	r.t.Helper()
	s, err := benchkit.Start(r.ctx, r.cfg, r.world, slog.New(slog.NewJSONHandler(r.log, nil)))
	require.NoError(r.t, err)
	r.System = s
}

func (r *rig) restart() {
	r.t.Helper()
	require.NoError(r.t, r.Close(context.Background()))
	r.start()
}

// sync makes a cohort of leaf and a sync without a run.
func (r *rig) sync(leaf string, mode cohortsyncv1.Sync_Mode) *cohortsyncv1.Sync {
	r.t.Helper()
	s, err := r.CreateSync(r.ctx, leaf, 1, mode)
	require.NoError(r.t, err)
	return s
}

// run asks for a run, waits for its end and checks that it adds up.
func (r *rig) run(s *cohortsyncv1.Sync) *cohortsyncv1.Run {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, 60*time.Second)
	defer cancel()
	run, err := r.Run(ctx, s.GetName())
	require.NoError(r.t, err)
	r.balanced(run)
	return run
}

func (r *rig) balanced(run *cohortsyncv1.Run) {
	r.t.Helper()
	t := run.GetTotals()
	require.Equal(r.t, t.GetEvaluated(), t.GetSent()+t.GetUnchanged()+t.GetSkipped()+t.GetFailed()+t.GetPending(), "evaluated must equal the sum of outcomes: %v", t)
	require.Equal(r.t, t.GetSent(), t.GetAdded()+t.GetUpdated())
}

func (r *rig) ok(run *cohortsyncv1.Run) *cohortsyncv1.Run {
	r.t.Helper()
	require.Equal(r.t, cohortsyncv1.Run_STATE_SUCCEEDED, run.GetState(), "%s: %s", run.GetReason(), run.GetReasonText())
	return run
}

func get[T any](r *rig, path string) (out T) {
	r.t.Helper()
	resp, err := http.Get(r.url + path)
	require.NoError(r.t, err)
	defer resp.Body.Close()
	require.NoError(r.t, json.NewDecoder(resp.Body).Decode(&out))
	return out
}

func (r *rig) knobs(k sandbox.Knobs) {
	r.t.Helper()
	b, err := json.Marshal(k)
	require.NoError(r.t, err)
	req, err := http.NewRequest(http.MethodPut, r.url+"/sandbox/knobs", bytes.NewReader(b))
	require.NoError(r.t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(r.t, err)
	require.NoError(r.t, resp.Body.Close())
	require.Equal(r.t, 200, resp.StatusCode)
}

// segment is the sandbox's members of the segment of a leaf's cohort.
func (r *rig) segment(leaf string) []string {
	r.t.Helper()
	for _, s := range get[sandbox.Segments](r, "/sandbox/segments").Segments {
		if s.Name == "Cohort of "+leaf {
			return get[sandbox.Members](r, fmt.Sprintf("/sandbox/segments/%d/members", s.ID)).Members
		}
	}
	return nil
}

func (r *rig) calls() (n int64) {
	r.t.Helper()
	for _, c := range get[sandbox.Statistics](r, "/sandbox/statistics").Calls {
		n += c
	}
	return n
}

// identifiers are those of users, sorted as the sandbox sorts them.
func (r *rig) identifiers(users ...uint64) []string {
	out := make([]string, 0, len(users))
	for _, u := range users {
		out = append(out, r.world.Identifier(u))
	}
	slices.Sort(out)
	return out
}

func (r *rig) outcomes(run *cohortsyncv1.Run, only cohortsyncv1.RunUser_Outcome, page int32) (out []*cohortsyncv1.RunUser) {
	r.t.Helper()
	token := ""
	for {
		resp, err := r.Runs.ListRunUsers(r.ctx, &cohortsyncv1.ListRunUsersRequest{Parent: run.GetName(), Outcome: only, PageSize: page, PageToken: token})
		require.NoError(r.t, err)
		out = append(out, resp.GetUsers()...)
		if token = resp.GetNextPageToken(); token == "" {
			return out
		}
	}
}

// people are users 1 to n with profiles.
func (r *rig) people(n uint64) []uint64 {
	var all []uint64
	for u := uint64(1); u <= n; u++ {
		r.world.SetUser(u, benchkit.User{Properties: map[string]any{"$email": fmt.Sprintf("user%d@example.org", u), "$first_name": fmt.Sprintf("Name%d", u)}})
		all = append(all, u)
	}
	return all
}

// deadConnector is one of an account whose calls are never answered.
func (r *rig) deadConnector(id int64) {
	r.world.SetConnector(1, id, &registryv1.CleverTap{AccountId: "DEAD", Region: "eu1", HostUrl: r.url, PartnerUrl: r.url + "/partner/mixpanel/cohort", Channel: partner}, passcode)
}
