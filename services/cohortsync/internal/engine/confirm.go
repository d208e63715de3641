package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"go.opentelemetry.io/otel/attribute"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/channel"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/clevertap"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

// confirm brings the ledger to what was confirmed and ends the run. It may be
// done again from its beginning at any point: folding is idempotent, and the
// end is one transaction. reason, when given, is why the run could not go on.
func (x *execution) confirm(reason, text string) error {
	if err := x.leave(); err != nil {
		return err
	}
	cause := context.Cause(x.stop)
	ctx, sp := tracer.Start(x.write(), "sync.confirm")
	defer sp.End()
	if x.run.State == store.Delivering {
		if err := x.save(store.Confirming); err != nil {
			return err
		}
	}
	traits := x.dest.Channel.Traits()
	f := &folding{execution: x, ctx: ctx, byCall: traits.RemovesByCall, keeps: traits.FullReplaces, dirty: roaring64.New()}
	if err := f.load(); err != nil {
		return err
	}
	f.replace = x.run.Full && traits.FullReplaces && f.allSent

	led := store.LedgerState{ProfileSeq: x.run.Plan.ProfileSeq, Fingerprint: x.run.Plan.Fingerprint, Confirmed: x.sync.Ledger.Confirmed,
		NeedsFull: x.run.Full && traits.FullReplaces && !f.allSent || x.unmade(), PublishPending: x.sync.Ledger.PublishPending}
	var d store.Totals
	if x.run.Full && traits.FullReplaces {
		// Nobody was removed by name; replacing did it, or did not.
		d.RemovePending = -x.run.Totals.RemovePending
		if f.allSent {
			d.Removed = x.run.Totals.RemovePending
		} else {
			d.RemoveFailed = x.run.Totals.RemovePending
		}
	}
	pub, publishes := x.dest.Channel.(channel.Publisher)
	if publishes {
		f.skipRemovals = true
		if err := f.fold(); err != nil {
			return err
		}
		f.skipRemovals = false
		led.PublishPending = led.PublishPending || x.run.Full || f.changed || !x.sync.Ledger.Dirty.IsEmpty() || x.sync.Ledger.Fingerprint != x.run.Plan.Fingerprint
		if led.PublishPending && cause == nil {
			pd, ce, err := x.publish(ctx, pub, f)
			if err != nil {
				return err
			}
			if ce != nil && x.drain.Err() != nil {
				return errDrained // the next process publishes
			}
			// The removals and their numbers in one transaction.
			if x.run.Totals, err = x.store.Confirm(ctx, x.lease, pd.results, pd.totals); err != nil {
				return err
			}
			if ce != nil {
				x.last = ce
				if ce.Class == clevertap.Refused || ce.Class == clevertap.BadEmail {
					x.fatal, cause = ce, errRefused
				} else {
					cause = errBroken
				}
			} else {
				led.PublishPending = false
				if err := f.load(); err != nil {
					return err
				}
			}
		}
	}
	// A publisher's batches are folded already but for the removals.
	if !publishes || f.removals {
		if err := f.fold(); err != nil {
			return err
		}
	}
	t, err := x.store.Confirm(ctx, x.lease, nil, d)
	if err != nil {
		return err
	}
	x.run.Totals = t
	if !t.Balanced() {
		return fmt.Errorf("run %d accounts for %d of %d users", x.run.ID, t.Sent+t.Unchanged+t.Skipped+t.Failed+t.Pending, t.Evaluated)
	}
	members, err := x.store.LedgerMembers(ctx, x.sync.ID)
	if err != nil {
		return err
	}
	led.Members, led.Dirty = int64(members.GetCardinality()), f.dirty
	fin := store.Finish{Ledger: led, Orphans: f.orphans()}
	x.verdict(&fin, cause, reason, text)
	sp.SetAttributes(attribute.Int64("cohortbridge.members", led.Members), attribute.Int("cohortbridge.orphans", len(fin.Orphans)))
	return x.end(fin)
}

// verdict says how the run ended.
func (x *execution) verdict(f *store.Finish, cause error, reason, text string) {
	t := x.run.Totals
	switch {
	case x.fatal != nil:
		f.State, f.Reason, f.ReasonText = store.Failed, store.PauseRefused, x.fatal.Error()
		f.SyncState = store.SyncPaused
		f.Pause = &store.Pause{Reason: store.PauseRefused, Text: x.fatal.Error(), Actor: "system", Since: x.cfg.Now()}
		if credentials(x.fatal) {
			if err := x.connectors.ReportRefused(x.write(), x.run.ProjectID, x.run.ConnectorID, x.fatal.Error()); err != nil {
				x.cfg.Log.WarnContext(x.stop, "connector state not reported", "connector", x.run.ConnectorID, "error", err)
			}
		}
	case reason != "":
		f.State, f.Reason, f.ReasonText = store.Failed, reason, text
	case errors.Is(cause, errCancelled):
		f.State, f.Reason, f.ReasonText = store.Cancelled, "REQUESTED", "cancelled on request"
	case cause == nil && t.Failed == 0 && t.Pending == 0 && t.RemoveFailed == 0 && t.RemovePending == 0 && len(f.Orphans) == 0:
		f.State = store.Succeeded
		if t.Calls > 0 && !x.dest.Connected {
			if err := x.connectors.ReportConnected(x.write(), x.run.ProjectID, x.run.ConnectorID); err != nil {
				x.cfg.Log.WarnContext(x.stop, "connector state not reported", "connector", x.run.ConnectorID, "error", err)
			}
		}
		f.Ledger.Confirmed = x.cfg.Now()
		if x.sync.Mode == store.OneTime && x.sync.State == store.SyncActive {
			f.SyncState = store.SyncCompleted
		}
	case t.Sent+t.Removed > 0 || cause == nil && t.Unchanged > 0:
		f.State, f.Reason, f.ReasonText = store.Partial, "SOME_USERS_FAILED", "some users were not delivered; the next run tries them again"
		if cause == nil {
			f.Ledger.Confirmed = x.cfg.Now()
		}
	default:
		f.State, f.Reason, f.ReasonText = store.Failed, "NOT_DELIVERED", "nothing was delivered; the next run tries again"
	}
	if x.last != nil && (f.State == store.Partial || f.State == store.Failed && x.fatal == nil && reason == "") {
		f.ReasonText += ": " + x.last.Error()
	}
}

// giveUp ends a run that our own errors keep from ending. What was sent may
// not be in the ledger, so the next run sends everyone.
func (x *execution) giveUp() error {
	f := store.Finish{State: store.Failed, Reason: "INTERNAL", ReasonText: "an internal error; see the log of the run's trace", KeepLedger: true}
	if x.run.Plan != nil && x.sync.ID != 0 {
		orphans, err := x.store.Orphans(x.write(), x.sync.ID)
		if err != nil {
			return err
		}
		f.KeepLedger, f.Ledger, f.Orphans = false, x.sync.Ledger, orphans
		f.Ledger.NeedsFull = true
	}
	return x.end(f)
}

// folding brings a run's results into the ledger's blocks.
type folding struct {
	*execution
	ctx    context.Context
	byCall bool
	// keeps says that what the ledger has stays true of who is not sent again.
	keeps bool
	// replace makes the ledger what was sent, whatever it was.
	replace      bool
	skipRemovals bool

	heads []store.BatchHead
	// allSent says that every batch to be sent was confirmed for every user.
	allSent bool
	// sentAgain are identifiers with an unconfirmed removal that this run sent
	// for another user: they belong there now.
	sentAgain map[string]bool
	left      []ledger.Entry
	dirty     *roaring64.Bitmap
	changed   bool
	removals  bool
	cache     map[int]store.Batch
}

// load reads the batches' heads and what has to be known before blocks are changed.
func (f *folding) load() (err error) {
	f.cache = map[int]store.Batch{}
	if f.heads, err = f.store.BatchHeads(f.ctx, f.run.ID); err != nil {
		return err
	}
	f.allSent, f.sentAgain = true, map[string]bool{}
	unconfirmed := false
	for _, h := range f.heads {
		f.changed = f.changed || h.Op != channel.Update
		f.removals = f.removals || h.Op == channel.Remove
		if h.Clean {
			continue
		}
		f.allSent = false
		if h.Op != channel.Remove {
			continue
		}
		unconfirmed = true
		if err := f.each(h, func(e ledger.Entry, _ byte, o store.Outcome, _ string) {
			if o != store.Sent {
				f.sentAgain[e.Identifier] = false
			}
		}); err != nil {
			return err
		}
	}
	if !unconfirmed || !f.byCall {
		return nil
	}
	for _, h := range f.heads {
		if h.Op == channel.Remove {
			continue
		}
		if err := f.each(h, func(e ledger.Entry, _ byte, o store.Outcome, _ string) {
			if _, ok := f.sentAgain[e.Identifier]; ok && o == store.Sent {
				f.sentAgain[e.Identifier] = true
			}
		}); err != nil {
			return err
		}
	}
	return nil
}

// cacheBatches is how many batches are kept while blocks are folded in order.
const cacheBatches = 64

func (f *folding) result(index int) (store.Batch, error) {
	if b, ok := f.cache[index]; ok {
		return b, nil
	}
	b, err := f.store.BatchUsers(f.ctx, f.run.ID, index)
	if err != nil {
		return b, err
	}
	if len(f.cache) >= cacheBatches {
		f.cache = map[int]store.Batch{}
	}
	f.cache[index] = b
	return b, nil
}

func (f *folding) each(h store.BatchHead, fn func(e ledger.Entry, flags byte, o store.Outcome, reason string)) error {
	b, err := f.result(h.Index)
	if err != nil {
		return err
	}
	for i, e := range b.Entries {
		o, reason := b.Result.Of(i)
		fn(e, b.Flags[i], o, reason)
	}
	return nil
}

// windowBlocks is how many blocks are folded in one transaction: it bounds the
// memory a large run takes and the time others wait to write.
const windowBlocks = 4

func (f *folding) fold() error {
	f.left, f.dirty = nil, roaring64.New()
	blocks, err := f.blocks()
	if err != nil {
		return err
	}
	for len(blocks) > 0 {
		n := min(windowBlocks, len(blocks))
		if err := f.window(blocks[:n]); err != nil {
			return err
		}
		blocks = blocks[n:]
	}
	return nil
}

// blocks lists, in ascending order, the blocks that any batch may touch.
func (f *folding) blocks() ([]uint64, error) {
	set := roaring64.New()
	for _, h := range f.heads {
		if h.Users > 0 {
			set.AddRange(ledger.BlockOf(h.First), ledger.BlockOf(h.Last)+1)
		}
	}
	if f.replace {
		old, err := f.store.LedgerBlocks(f.ctx, f.sync.ID)
		if err != nil {
			return nil, err
		}
		set.AddMany(old)
	}
	return set.ToArray(), nil
}

type blockChange struct {
	set  []ledger.Entry
	drop []uint64
}

func (f *folding) window(nos []uint64) error {
	lo, hi := ledger.FirstUser(nos[0]), ledger.FirstUser(nos[len(nos)-1]+1)-1
	if hi < lo {
		hi = ^uint64(0)
	}
	changes := map[uint64]*blockChange{}
	at := func(u uint64) *blockChange {
		no := ledger.BlockOf(u)
		if changes[no] == nil {
			changes[no] = &blockChange{}
		}
		return changes[no]
	}
	type removal struct {
		e ledger.Entry
		// ok: confirmed; maybe: asked, and it may have had its effect.
		ok, maybe bool
	}
	var removals []removal
	var unsent []uint64
	for _, h := range f.heads {
		if h.Users == 0 || h.Last < lo || h.First > hi {
			continue
		}
		err := f.each(h, func(e ledger.Entry, flags byte, o store.Outcome, reason string) {
			if e.User < lo || e.User > hi {
				return
			}
			moved := flags&store.FlagMoved != 0
			switch {
			case h.Op == channel.Remove:
				if !f.skipRemovals {
					removals = append(removals, removal{e, o == store.Sent, f.byCall && f.mayHaveWorked(o, reason)})
				}
			case o == store.Sent:
				c := at(e.User)
				c.set = append(c.set, e)
			case h.Op == channel.Add && f.byCall && f.mayHaveWorked(o, reason):
				// It may have had its effect: remember the identifier, so that a
				// leaver is removed, and send the columns again.
				c := at(e.User)
				e.Hash = ledger.Unconfirmed
				c.set = append(c.set, e)
				f.dirty.Add(e.User)
			case h.Op == channel.Update || moved:
				f.dirty.Add(e.User)
			case f.run.Full && !f.keeps:
				// What the ledger has of the user may be from another place or time.
				unsent = append(unsent, e.User)
			}
		})
		if err != nil {
			return err
		}
	}
	views := map[uint64]*ledger.View{}
	stored := map[uint64]ledger.Block{}
	get := func(no uint64) (ledger.Block, error) {
		if b, ok := stored[no]; ok {
			return b, nil
		}
		b := ledger.Block{No: no}
		if !f.replace {
			var err error
			if b, err = f.store.LedgerBlock(f.ctx, f.sync.ID, no); err != nil {
				return b, err
			}
		}
		stored[no] = b
		return b, nil
	}
	lookup := func(user uint64) (e ledger.Entry, in bool, err error) {
		no := ledger.BlockOf(user)
		if views[no] == nil {
			b, err := get(no)
			if err != nil {
				return e, false, err
			}
			if views[no], err = b.View(); err != nil {
				return e, false, err
			}
		}
		e, in = views[no].Lookup(user)
		return e, in, nil
	}
	for _, u := range unsent {
		now, in, err := lookup(u)
		if err != nil {
			return err
		}
		if in {
			f.dirty.Add(u)
			now.Hash = ledger.Unconfirmed
			c := at(u)
			c.set = append(c.set, now)
		}
	}
	for _, r := range removals {
		now, in, err := lookup(r.e.User)
		if err != nil {
			return err
		}
		for _, s := range at(r.e.User).set {
			if s.User == r.e.User {
				now, in = s, true
			}
		}
		taken := f.sentAgain[r.e.Identifier]
		switch {
		case in && now.Identifier == r.e.Identifier:
			c := at(r.e.User)
			switch {
			case r.ok || taken:
				c.drop = append(c.drop, r.e.User)
				continue
			case r.maybe:
				// The user may be out already: should they come back, they are
				// sent again, whatever the ledger has of them.
				now.Hash = ledger.Unconfirmed
				c.set = append(c.set, now)
			}
			f.dirty.Add(r.e.User)
		case !r.ok && !taken && f.byCall:
			f.left = append(f.left, r.e)
		}
	}
	var blocks []ledger.Block
	var rewritten []bool
	for _, no := range nos {
		c := changes[no]
		if c == nil {
			if !f.replace {
				continue
			}
			c = &blockChange{}
		}
		b, err := get(no)
		if err != nil {
			return err
		}
		next, rw, err := b.Apply(c.set, c.drop)
		if err != nil {
			return err
		}
		blocks, rewritten = append(blocks, next), append(rewritten, rw || f.replace)
	}
	if len(blocks) == 0 {
		return nil
	}
	return f.store.SaveBlocks(f.ctx, f.lease, f.sync.ID, blocks, rewritten)
}

// mayHaveWorked reports whether a call without a confirmation may have had its
// effect all the same. A process that is gone may have made it and not told.
func (f *folding) mayHaveWorked(o store.Outcome, reason string) bool {
	return o == store.Unknown || o == store.Pending && f.run.Attempts > 1 || o == store.FailedOne && (reason == "destination_error" || reason == "no_answer")
}

// orphans are identifiers that were sent, have no entry, and are not confirmed
// to be gone. Every earlier orphan was planned again, so these are all.
func (f *folding) orphans() []ledger.Entry { return f.left }
