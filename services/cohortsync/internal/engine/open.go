package engine

import (
	"context"
	"net/http"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/channel"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/clevertap"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/delivery"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

// open makes the segment where that is a call of its own: before the first batch
// of a full run, once a run, which a crash may make twice. A run that is not full
// follows one that did it.
func (x *execution) open() error {
	prep, ok := x.dest.Channel.(channel.Preparer)
	if !ok || !x.run.Full || x.run.Plan.Opened || x.run.State != store.Delivering || x.interrupted() {
		return nil
	}
	ctx, sp := tracer.Start(x.stop, "sync.open")
	defer sp.End()
	n := 0
	report := delivery.Retry(ctx, x.hard, x.cfg.Policy, x.limiter(x.dest.Channel.Traits()), func(ctx context.Context) error {
		n++
		return prep.Open(ctx, x.segment)
	})
	t, err := x.store.Confirm(x.write(), x.lease, nil, store.Totals{Calls: int64(n)})
	if err != nil {
		return err
	}
	x.run.Totals = t
	switch {
	case report.Outcome.State == delivery.Delivered:
		x.run.Plan.Opened = true
		return x.save(store.Delivering)
	case report.Stopped: // taken up again, or cancelled
	case report.Fatal != nil:
		x.fatal = report.Fatal
		x.halt(errRefused)
	default:
		if x.last = report.Last; x.last == nil {
			x.last = &clevertap.Error{Class: clevertap.Transient, Message: "the segment was not made"}
		}
		x.halt(errBroken)
	}
	return nil
}

// unmade reports whether the segment may not be there: the next run makes it, and
// sends everyone. A refusal that is not about the credentials may mean that
// somebody deleted it.
func (x *execution) unmade() bool {
	if _, ok := x.dest.Channel.(channel.Preparer); !ok {
		return false
	}
	gone := x.fatal != nil && !credentials(x.fatal)
	return x.run.Full && !x.run.Plan.Opened || gone
}

// credentials reports whether a refusal is about who calls, whether the status says
// so or the body of a 200.
func credentials(e *clevertap.Error) bool {
	about := func(code int) bool { return code == http.StatusUnauthorized || code == http.StatusForbidden }
	return e.Class == clevertap.Refused && (about(e.Status) || about(e.Code))
}
