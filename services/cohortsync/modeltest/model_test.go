package modeltest

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	"github.com/cohortbridge/cohortbridge/sandbox"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/benchkit"
)

// TestSegmentsAreTheCohortsAfterAnyHistory plays COHORTBRIDGE_MODEL_SEEDS histories
// from seed COHORTBRIDGE_MODEL_FIRST on.
func TestSegmentsAreTheCohortsAfterAnyHistory(t *testing.T) {
	first, seeds := env(t, "COHORTBRIDGE_MODEL_FIRST", 0), env(t, "COHORTBRIDGE_MODEL_SEEDS", 4)
	for seed := first; seed < first+seeds; seed++ {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			play(t, seed)
		})
	}
}

func env(t *testing.T, name string, without uint64) uint64 {
	v := os.Getenv(name)
	if v == "" {
		return without
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

type channelKind = registryv1.CleverTap_Channel

// kinds are the channels; connector n goes through the n-th.
var kinds = []channelKind{registryv1.CleverTap_CHANNEL_PARTNER, registryv1.CleverTap_CHANNEL_CUSTOM_LIST, registryv1.CleverTap_CHANNEL_API_SEGMENT}

// segmentTypes are what the Segments page calls them.
var segmentTypes = []string{"Partner - Mixpanel", "Custom - List Based", "API Segments"}

const (
	account  = "SBX-000-000Z"
	passcode = "SAN-DBO-XXPC"
)

// person is one user as the model knows her.
type person struct {
	profile              bool
	partner, name, email string
}

// synced is a sync and what it exports.
type synced struct {
	name, leaf, cohort string
	connector          int
}

// model is a world, an engine that looks at it, and what must come of it.
type model struct {
	t      *testing.T
	rng    *rand.Rand
	world  *benchkit.World
	url    string
	spec   child
	engine *process
	people []person
	leaves map[string]map[uint64]bool
	syncs  []*synced
	// lost is the share of calls whose answer is lost after their effect, in percent.
	lost atomic.Int32
	// did is the history, for the one who has to find out.
	did []string
}

// newModel is a random world with an engine that has one to three syncs.
func newModel(t *testing.T, seed uint64) *model {
	m := &model{t: t, rng: rand.New(rand.NewPCG(seed, 1)), world: benchkit.NewWorld(), leaves: map[string]map[uint64]bool{}}
	sb, err := sandbox.New(sandbox.Config{Knobs: sandbox.Knobs{Seed: seed}})
	if err != nil {
		t.Fatal(err)
	}
	answers := rand.New(rand.NewPCG(seed, 2))
	draws := make(chan int32)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case draws <- answers.Int32N(100):
			case <-done:
				return
			}
		}
	}()
	h := sb.Handler()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.URL.Path != "/sandbox/knobs" && <-draws < m.lost.Load() {
			h.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		h.ServeHTTP(w, r)
	}))
	m.url = srv.URL
	t.Cleanup(func() { srv.Close(); sb.Close(); close(done) })
	m.spec = child{DataDir: t.TempDir(), World: serveWorld(t, m.world), Batch: 5 + m.rng.IntN(40)}
	m.connect(passcode)
	m.people = make([]person, 30+m.rng.IntN(120))
	for i := range m.people {
		m.change(uint64(i + 1))
	}
	m.engine = startProcess(t, m.spec)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("history:\n%s", strings.Join(m.did, "\n"))
		}
		m.engine.end(t, 9)
	})
	for i := range 1 + m.rng.IntN(3) {
		m.sync(fmt.Sprintf("Leaf%d", i), m.rng.IntN(len(kinds)))
	}
	return m
}

// connect makes the connectors with a passcode.
func (m *model) connect(pass string) {
	for i, k := range kinds {
		m.world.SetConnector(1, int64(i+1), &registryv1.CleverTap{AccountId: account, Region: "eu1", HostUrl: m.url, PartnerUrl: m.url + "/partner/mixpanel/cohort", Channel: k, AdminEmail: "admin@example.org"}, pass)
	}
}

func (m *model) sync(leaf string, kind int) {
	m.leaves[leaf] = map[uint64]bool{}
	for u := range m.people {
		if m.rng.IntN(2) == 0 {
			m.leaves[leaf][uint64(u+1)] = true
		}
	}
	m.tell(leaf)
	ctx := m.t.Context()
	name := "Cohort of " + leaf
	c, err := m.engine.cohorts.CreateCohort(ctx, &cohortsyncv1.CreateCohortRequest{Parent: "projects/1", Cohort: &cohortsyncv1.Cohort{DisplayName: name, Definition: benchkit.Did(leaf)}})
	if err != nil {
		m.t.Fatal(err)
	}
	s, err := m.engine.syncs.CreateSync(ctx, &cohortsyncv1.CreateSyncRequest{Parent: "projects/1", SkipFirstRun: true, Sync: &cohortsyncv1.Sync{
		Cohort: c.GetCohort().GetName(), Connector: fmt.Sprintf("projects/1/connectors/%d", kind+1), Mode: cohortsyncv1.Sync_MODE_DYNAMIC}})
	if err != nil {
		m.t.Fatal(err)
	}
	m.syncs = append(m.syncs, &synced{name: s.GetSync().GetName(), leaf: leaf, cohort: name, connector: kind})
}

// tell brings a leaf's members into the world.
func (m *model) tell(leaf string) {
	var in []uint64
	for u, yes := range m.leaves[leaf] {
		if yes {
			in = append(in, u)
		}
	}
	m.world.SetLeaf(leaf, in...)
}

// change gives a user a new profile, takes it away, or moves a partner id to her.
func (m *model) change(user uint64) {
	p := &m.people[user-1]
	switch m.rng.IntN(8) {
	case 0:
		if p.profile {
			*p = person{}
			m.world.Forget(user)
			return
		}
	case 1:
		p.partner = ""
	case 2: // an id that was, or is, somebody else's
		id := fmt.Sprintf("ct-%d", m.rng.IntN(len(m.people)))
		for i := range m.people {
			if m.people[i].partner == id {
				m.people[i].partner = ""
				m.set(uint64(i + 1))
			}
		}
		p.partner = id
	case 3:
		p.email = "no address"
	case 4:
		p.email = fmt.Sprintf("m%d@example.org", m.rng.IntN(1000))
	}
	p.profile, p.name = true, fmt.Sprintf("Name%d", m.rng.IntN(1000))
	m.set(user)
}

func (m *model) set(user uint64) {
	p := m.people[user-1]
	props := map[string]any{"$first_name": p.name}
	if p.email != "" {
		props["$email"] = p.email
	}
	m.world.SetUser(user, benchkit.User{PartnerID: p.partner, Properties: props})
}

// identifier is how the destination must know a user.
func (m *model) identifier(user uint64) string {
	if id := m.people[user-1].partner; id != "" {
		return id
	}
	return fmt.Sprintf("u%d", user)
}

// members are the identifiers that must be in a sync's segment, sorted.
func (m *model) members(s *synced) []string {
	out := []string{}
	for u, yes := range m.leaves[s.leaf] {
		if yes && m.people[u-1].profile {
			out = append(out, m.identifier(u))
		}
	}
	slices.Sort(out)
	return out
}
