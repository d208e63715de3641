package modeltest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	"github.com/cohortbridge/cohortbridge/sandbox"
)

// steps is how many things happen in a history.
const steps = 9

// play lets a random history happen and looks at everything on the way.
func play(t *testing.T, seed uint64) {
	m := newModel(t, seed)
	for range steps {
		m.drift()
		m.weather()
		m.step(m.syncs[m.rng.IntN(len(m.syncs))])
	}
	m.note("the end")
	m.lost.Store(0)
	m.knobs(sandbox.Knobs{})
	for _, s := range m.syncs {
		m.settle(s)
	}
	m.story()
}

func (m *model) note(format string, args ...any) {
	m.did = append(m.did, fmt.Sprintf(format, args...))
}

// drift changes who is in the cohorts and who people are.
func (m *model) drift() {
	for leaf, in := range m.leaves {
		n := m.rng.IntN(len(m.people)/4 + 1)
		if m.rng.IntN(8) == 0 {
			n = len(m.people) // about half of them change sides: the guard wakes
		}
		for range n {
			u := 1 + m.rng.Uint64N(uint64(len(m.people)))
			in[u] = !in[u]
		}
		m.tell(leaf)
	}
	for range m.rng.IntN(10) {
		m.change(1 + m.rng.Uint64N(uint64(len(m.people))))
	}
}

// weather is how the destination behaves from now on.
func (m *model) weather() {
	k := sandbox.Knobs{Seed: 1 + m.rng.Uint64N(1<<40)}
	lost := int32(0)
	switch m.rng.IntN(4) {
	case 0:
		k.Rate429, k.Rate5xx, k.PartialRate = 0.2, 0.2, 0.05
	case 1:
		k.Rate5xx, lost = 0.3, 20
	case 2:
		k.FailWith200 = m.rng.IntN(3) == 0
	}
	k.LatencyMS = m.rng.IntN(12)
	m.lost.Store(lost)
	m.knobs(k)
	m.note("429 %.1f, 5xx %.1f, partial %.2f, 200 with fail %v, answers lost %d %%, %d ms", k.Rate429, k.Rate5xx, k.PartialRate, k.FailWith200, lost, k.LatencyMS)
}

// step is one thing that happens to a sync.
func (m *model) step(s *synced) {
	switch m.rng.IntN(9) {
	case 0, 1:
		m.note("run %s", s.leaf)
		m.check(s, m.wait(s, m.ask(s, false)), true)
	case 2:
		m.note("full run %s", s.leaf)
		m.check(s, m.wait(s, m.ask(s, true)), true)
	case 3, 4:
		r := m.ask(s, m.rng.IntN(4) == 0)
		for range 1 + m.rng.IntN(2) {
			m.pause(150)
			m.note("kill during %s", r.GetName())
			m.restart(syscall.SIGKILL)
		}
		m.check(s, m.wait(s, r), true)
	case 5:
		r := m.ask(s, false)
		m.pause(80)
		m.note("cancel %s", r.GetName())
		_, err := m.engine.runs.CancelRun(m.t.Context(), &cohortsyncv1.CancelRunRequest{Name: r.GetName()})
		if err != nil && status.Code(err) != codes.FailedPrecondition { // it may be over
			m.t.Fatal(err)
		}
		m.check(s, m.wait(s, r), true)
	case 6:
		r := m.ask(s, false)
		m.pause(40)
		m.note("people change during %s", r.GetName())
		m.drift()
		m.pause(40)
		if m.rng.IntN(2) == 0 {
			m.note("stop and start")
			m.restart(syscall.SIGTERM)
		}
		m.check(s, m.wait(s, r), false)
	case 7:
		m.note("the passcode of %s is wrong", s.leaf)
		m.connect("WRONG-PASSCODE")
		r := m.wait(s, m.ask(s, false))
		m.check(s, r, true)
		m.connect(passcode)
	case 8:
		m.note("four days later")
		m.spec.Clock += 4 * 24 * time.Hour
		m.restart(syscall.SIGTERM)
		for _, s := range m.syncs { // all are due
			m.check(s, m.wait(s, m.ask(s, false)), false)
		}
	}
}

// pause lets some time pass, at most so many milliseconds: the moment is random on purpose.
func (m *model) pause(most int) {
	select {
	case <-time.After(time.Duration(m.rng.IntN(most*1000)) * time.Microsecond):
	case <-m.t.Context().Done():
	}
}

func (m *model) restart(sig syscall.Signal) {
	m.engine.end(m.t, sig)
	m.engine = startProcess(m.t, m.spec)
}

func (m *model) knobs(k sandbox.Knobs) {
	b, err := json.Marshal(k)
	if err != nil {
		m.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(m.t.Context(), http.MethodPut, m.url+"/sandbox/knobs", bytes.NewReader(b))
	if err != nil {
		m.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	_ = resp.Body.Close() // nothing is read of it
	if resp.StatusCode != http.StatusOK {
		m.t.Fatalf("knobs: %d", resp.StatusCode)
	}
}

// ask asks for a run, or for the one that comes with going on after a pause.
func (m *model) ask(s *synced, full bool) *cohortsyncv1.Run {
	got, err := m.engine.syncs.GetSync(m.t.Context(), &cohortsyncv1.GetSyncRequest{Name: s.name})
	if err != nil {
		m.t.Fatal(err)
	}
	if got.GetSync().GetState() == cohortsyncv1.Sync_STATE_PAUSED {
		m.note("resume %s", s.leaf)
		resp, err := m.engine.syncs.ResumeSync(m.t.Context(), &cohortsyncv1.ResumeSyncRequest{Name: s.name})
		if err != nil {
			m.t.Fatal(err)
		}
		return resp.GetRun()
	}
	resp, err := m.engine.syncs.RunSync(m.t.Context(), &cohortsyncv1.RunSyncRequest{Name: s.name, Full: full})
	if status.Code(err) == codes.FailedPrecondition { // a scheduled run was refused meanwhile
		return m.ask(s, full)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return resp.GetRun()
}

// patience is how long a run may take.
const patience = time.Minute

// wait looks at a run until it is over. A blocked one is approved, or not.
func (m *model) wait(s *synced, r *cohortsyncv1.Run) *cohortsyncv1.Run {
	var before []string
	end := time.Now().Add(patience)
	for r.GetState() < cohortsyncv1.Run_STATE_SUCCEEDED || r.GetState() == cohortsyncv1.Run_STATE_BLOCKED {
		if time.Now().After(end) {
			m.t.Fatalf("%s is still %s", r.GetName(), r.GetState())
		}
		if r.GetState() == cohortsyncv1.Run_STATE_BLOCKED {
			before = m.segment(s)
			m.balanced(r)
			if calls := r.GetTotals().GetCalls(); calls != 0 {
				m.t.Fatalf("%s is blocked and made %d calls", r.GetName(), calls)
			}
			var err error
			if m.rng.IntN(3) > 0 {
				m.note("approve %s", r.GetName())
				_, err = m.engine.runs.ApproveRun(m.t.Context(), &cohortsyncv1.ApproveRunRequest{Name: r.GetName()})
			} else {
				m.note("refuse %s", r.GetName())
				_, err = m.engine.runs.CancelRun(m.t.Context(), &cohortsyncv1.CancelRunRequest{Name: r.GetName()})
			}
			if err != nil {
				m.t.Fatal(err)
			}
		}
		select {
		case <-time.After(3 * time.Millisecond):
		case <-m.t.Context().Done():
			m.t.Fatal(m.t.Context().Err())
		}
		got, err := m.engine.runs.GetRun(m.t.Context(), &cohortsyncv1.GetRunRequest{Name: r.GetName()})
		if err != nil {
			m.t.Fatal(err)
		}
		r = got.GetRun()
	}
	if before != nil && r.GetState() == cohortsyncv1.Run_STATE_CANCELLED {
		m.same("a run that was blocked and refused changed the segment", m.segment(s), before)
	}
	return r
}

// settle runs a sync until it succeeds: then nothing may be left to do.
func (m *model) settle(s *synced) {
	var r *cohortsyncv1.Run
	for range 8 {
		r = m.wait(s, m.ask(s, false))
		m.check(s, r, true)
		if r.GetState() == cohortsyncv1.Run_STATE_SUCCEEDED {
			break
		}
	}
	if r.GetState() != cohortsyncv1.Run_STATE_SUCCEEDED {
		m.t.Fatalf("%s does not get through on a good day: %s %s %s", s.leaf, r.GetState(), r.GetReason(), r.GetReasonText())
	}
	want := m.members(s)
	m.same("segment of "+s.leaf+" at the end", m.segment(s), want)
	r = m.wait(s, m.ask(s, false))
	m.check(s, r, true)
	if t := r.GetTotals(); r.GetState() != cohortsyncv1.Run_STATE_SUCCEEDED || t.GetUnchanged() != int64(len(want)) || t.GetCalls() != 0 {
		m.t.Fatalf("a run without a change: %s, %v", r.GetState(), t)
	}
}
