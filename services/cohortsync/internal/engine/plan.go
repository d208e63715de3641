package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"github.com/cespare/xxhash/v2"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/channel"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/cohort"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/diff"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

// skipAnonymous is a user without a profile.
const skipAnonymous = "anonymous"

// plan compares the evaluation with the ledger and writes every call that is
// to be made, before the first one is. blocked says why a guard stopped it.
func (x *execution) plan(res *cohort.Result) (blocked string, err error) {
	ctx, sp := tracer.Start(x.stop, "sync.plan")
	defer sp.End()
	traits := x.dest.Channel.Traits()
	if n := x.cfg.MaxBatchUsers; n > 0 {
		traits.MaxRecords = min(traits.MaxRecords, n)
	}
	// The ledger is that of a segment as long as nobody else writes to it.
	writer, err := x.store.LastWriter(ctx, x.key)
	if err != nil {
		return "", err
	}
	if traits.ByName() && x.dry == nil {
		// Nobody leaves such a segment by being left out of it: who is in has to
		// be known, also when others put them there.
		taken, err := x.store.TakeOver(x.write(), x.lease, x.key)
		if err != nil {
			return "", err
		}
		x.run.Full = x.run.Full || taken
		if x.sync, err = x.store.Sync(ctx, x.run.ProjectID, x.run.SyncID); err != nil {
			return "", err
		}
	}
	led := x.sync.Ledger
	sent, err := x.store.LedgerMembers(ctx, x.sync.ID)
	if err != nil {
		return "", err
	}
	p := &planner{execution: x, traits: traits, sent: sent, skips: map[string]*roaring64.Bitmap{}, builders: map[channel.Op]*builder{}}
	p.skips[skipAnonymous] = roaring64.AndNot(res.Users, res.Members)

	now := x.cfg.Now()
	stale := !led.Confirmed.IsZero() && now.Sub(led.Confirmed) > x.cfg.SnapshotLife
	otherChannel := led.Fingerprint != 0 && led.Fingerprint&0xff != x.dest.Fingerprint&0xff
	again := x.sync.Mode == store.OneTime && x.sync.State == store.SyncCompleted
	x.run.Full = x.run.Full || led.NeedsFull || stale || otherChannel || again || writer != x.sync.ID

	var change diff.Change
	switch {
	case x.run.Full:
		change = diff.Change{Add: res.Members, Remove: roaring64.AndNot(sent, res.Members), Check: roaring64.New()}
	case led.Fingerprint != x.dest.Fingerprint:
		change = diff.Of(res.Members, sent, nil)
	default:
		touched := led.Dirty.Clone()
		if led.ProfileSeq < res.ProfileSeq {
			changed, err := x.users.ChangedUsers(ctx, x.run.ProjectID, led.ProfileSeq, res.ProfileSeq)
			if err != nil {
				return "", err
			}
			touched.Or(changed)
		}
		change = diff.Of(res.Members, sent, touched)
	}
	removed, members := change.Remove.GetCardinality(), sent.GetCardinality()
	sp.SetAttributes(attribute.Bool("cohortbridge.full", x.run.Full), attribute.Int64("cohortbridge.users.add", int64(change.Add.GetCardinality())),
		attribute.Int64("cohortbridge.users.remove", int64(removed)), attribute.Int64("cohortbridge.users.check", int64(change.Check.GetCardinality())))
	if !x.run.Approved && x.cfg.Guard.Trips(removed, members) {
		sp.AddEvent("guard")
		n := int64(res.Users.GetCardinality())
		x.run.Totals = store.Totals{Evaluated: n, Pending: n, RemovePending: int64(removed)}
		return fmt.Sprintf("the run would remove %d of %d members; approve it if that is right", removed, members), nil
	}
	p.unchanged = int64(change.Keep)
	if err := p.removals(change.Remove); err != nil {
		return "", err
	}
	if err := p.members(change); err != nil {
		return "", err
	}
	return "", p.finish(res, sp)
}

type planner struct {
	*execution
	traits    channel.Traits
	builders  map[channel.Op]*builder
	moved     *builder
	pages     map[channel.Op]int
	index     int
	queue     []store.Batch
	skips     map[string]*roaring64.Bitmap
	sent      *roaring64.Bitmap
	unchanged int64
	totals    store.Totals
	block     *ledger.View
	blockNo   uint64

	// removing and adding are hashes of identifiers, to see whether one moves
	// from one user to another.
	removing map[uint64]struct{}
	adding   []uint64
}

// builder collects one batch of an operation.
type builder struct {
	batch store.Batch
	bytes int
}

// queueBatches is how many batches are stored in one transaction.
const queueBatches = 16

func (p *planner) builder(op channel.Op) *builder {
	if p.builders[op] == nil {
		p.builders[op] = &builder{batch: store.Batch{Op: op}}
	}
	return p.builders[op]
}

func (p *planner) put(b *builder, e ledger.Entry, flags byte, record []byte) error {
	if len(b.batch.Entries) > 0 && (len(b.batch.Entries) >= p.traits.MaxRecords || b.bytes+len(record) > p.traits.MaxBytes) {
		if err := p.flush(b); err != nil {
			return err
		}
	}
	b.batch.Entries = append(b.batch.Entries, e)
	b.batch.Flags = append(b.batch.Flags, flags)
	if record != nil {
		b.batch.Records = append(b.batch.Records, record)
	}
	b.bytes += len(record) + 1
	return nil
}

func (p *planner) flush(b *builder) error {
	if b == nil || len(b.batch.Entries) == 0 {
		return nil
	}
	op := b.batch.Op
	if p.pages == nil {
		p.pages = map[channel.Op]int{}
	}
	p.pages[op]++
	b.batch.Page, b.batch.Index = p.pages[op], p.index
	p.index++
	if p.dry != nil {
		p.dry.count(&b.batch, p.traits)
		*b = builder{batch: store.Batch{Op: op}}
		return nil
	}
	p.queue = append(p.queue, b.batch)
	*b = builder{batch: store.Batch{Op: op}}
	if len(p.queue) < queueBatches {
		return nil
	}
	return p.writeQueue()
}

func (p *planner) writeQueue() error {
	if len(p.queue) == 0 || p.dry != nil {
		return nil
	}
	err := p.store.AddBatches(p.stop, p.lease, p.queue)
	p.queue = p.queue[:0]
	return err
}

// sentEntry is what the ledger has for a user who is in.
func (p *planner) sentEntry(user uint64) (ledger.Entry, error) {
	no := ledger.BlockOf(user)
	if p.block == nil || p.blockNo != no {
		b, err := p.store.LedgerBlock(p.stop, p.sync.ID, no)
		if err != nil {
			return ledger.Entry{}, err
		}
		if p.block, err = b.View(); err != nil {
			return ledger.Entry{}, err
		}
		p.blockNo = no
	}
	e, ok := p.block.Lookup(user)
	if !ok {
		return e, fmt.Errorf("the ledger has no detail of a member in block %d", no)
	}
	return e, nil
}

func (p *planner) trackRemoval(identifier string) {
	if p.removing == nil {
		p.removing = map[uint64]struct{}{}
	}
	p.removing[xxhash.Sum64String(identifier)] = struct{}{}
}

// removals plans to take out users by the identifier that was sent, and
// identifiers that an earlier run left behind.
func (p *planner) removals(set *roaring64.Bitmap) error {
	if p.run.Full && p.traits.FullReplaces {
		p.totals.RemovePending = int64(set.GetCardinality())
		return nil
	}
	b := p.builder(channel.Remove)
	for it := set.Iterator(); it.HasNext(); {
		e, err := p.sentEntry(it.Next())
		if err != nil {
			return err
		}
		p.totals.RemovePending++
		p.trackRemoval(e.Identifier)
		if err := p.put(b, e, 0, p.dest.Channel.Removal(e.Identifier)); err != nil {
			return err
		}
	}
	if err := p.flush(b); err != nil {
		return err
	}
	orphans, err := p.store.Orphans(p.stop, p.sync.ID)
	if err != nil {
		return err
	}
	for _, o := range orphans {
		p.trackRemoval(o.Identifier)
		if err := p.put(b, o, store.FlagMoved, p.dest.Channel.Removal(o.Identifier)); err != nil {
			return err
		}
	}
	return p.flush(b)
}

// resolveChunk is how many users are asked about in one call.
const resolveChunk = 20_000

// chunk is what is known of some users.
type chunk struct {
	members []resolved
	missing *roaring64.Bitmap
}

type resolved struct {
	channel.Member
	identified bool
}

// resolve reads users chunk by chunk, in ascending order.
func (p *planner) resolve(ctx context.Context, users *roaring64.Bitmap, to chan<- chunk) error {
	it := users.ManyIterator()
	buf := make([]uint64, resolveChunk)
	for {
		n := it.NextMany(buf)
		if n == 0 {
			return nil
		}
		asked := roaring64.New()
		asked.AddMany(buf[:n])
		c := chunk{missing: asked.Clone(), members: make([]resolved, 0, n)}
		err := p.users.Resolve(ctx, p.run.ProjectID, asked, p.dest.Properties, p.dest.PartnerProperty, func(m channel.Member, identified bool) error {
			if !c.missing.CheckedRemove(m.UserNo) {
				return errors.New("a user was answered twice or not asked for")
			}
			c.members = append(c.members, resolved{m, identified})
			return nil
		})
		if err != nil {
			return err
		}
		select {
		case to <- c:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// members plans the users to be sent, and looks at those who may have changed.
func (p *planner) members(change diff.Change) error {
	p.moved = &builder{batch: store.Batch{Op: channel.Remove}}
	// While one chunk is written, the next one is read: the two take about as long.
	group, ctx := errgroup.WithContext(p.stop)
	chunks := make(chan chunk, 1)
	group.Go(func() error {
		defer close(chunks)
		return p.resolve(ctx, roaring64.Or(change.Add, change.Check), chunks)
	})
	group.Go(func() error {
		for c := range chunks {
			for _, m := range c.members {
				if err := p.member(m.Member, m.identified, change); err != nil {
					return err
				}
			}
			for miss := c.missing.Iterator(); miss.HasNext(); {
				if err := p.skip(miss.Next(), channel.SkipNoIdentifier, change); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		return err
	}
	for _, b := range []*builder{p.moved, p.builders[channel.Add], p.builders[channel.Update]} {
		if err := p.flush(b); err != nil {
			return err
		}
	}
	if p.run.Full && p.traits.FullReplaces && p.pages[channel.Add] == 0 {
		// A segment without members is said with one page without members.
		p.queue = append(p.queue, store.Batch{Index: p.index, Page: 1, Op: channel.Add})
		p.index++
		p.pages = map[channel.Op]int{channel.Add: 1}
	}
	return p.writeQueue()
}

// skip leaves a user out; one who is in is taken out.
func (p *planner) skip(user uint64, reason string, change diff.Change) error {
	if p.skips[reason] == nil {
		p.skips[reason] = roaring64.New()
	}
	p.skips[reason].Add(user)
	// A full run that does not replace the segment takes them out by name as well.
	if !change.Check.Contains(user) && (!p.run.Full || p.traits.FullReplaces || !p.sent.Contains(user)) {
		return nil
	}
	e, err := p.sentEntry(user)
	if err != nil {
		return err
	}
	p.totals.RemovePending++
	p.trackRemoval(e.Identifier)
	return p.put(p.moved, e, 0, p.dest.Channel.Removal(e.Identifier))
}

func (p *planner) member(m channel.Member, identified bool, change diff.Change) error {
	if !identified {
		return p.skip(m.UserNo, skipAnonymous, change)
	}
	enc, skip := p.dest.Channel.Encode(m)
	if skip != "" {
		return p.skip(m.UserNo, skip, change)
	}
	e := ledger.Entry{User: m.UserNo, Identifier: enc.Identifier, Hash: max(1, xxhash.Sum64(enc.Record))}
	var flags byte
	for _, w := range enc.Warnings {
		flags |= warningFlags[w]
	}
	op := channel.Add
	again := p.run.Full && p.traits.ByName() && p.sent.Contains(m.UserNo)
	if again || change.Check.Contains(m.UserNo) {
		old, err := p.sentEntry(m.UserNo)
		switch {
		case err != nil:
			return err
		case old.Identifier != e.Identifier:
			flags |= store.FlagMoved
			p.trackRemoval(old.Identifier)
			if err := p.put(p.moved, old, store.FlagMoved, p.dest.Channel.Removal(old.Identifier)); err != nil {
				return err
			}
		case again:
		case old.Hash == e.Hash:
			p.unchanged++
			return nil
		case old.Hash == ledger.Unconfirmed && p.traits.ByName():
			// An update does not put anybody in, and she may not be.
			flags |= store.FlagMoved
		default:
			op = channel.Update
		}
	}
	p.totals.Pending++
	if p.traits.RemovesByCall && (!p.run.Full || !p.traits.FullReplaces) {
		p.adding = append(p.adding, xxhash.Sum64String(e.Identifier))
	}
	return p.put(p.builder(op), e, flags, enc.Record)
}

var warningFlags = map[string]byte{channel.WarnEmail: store.FlagEmail, channel.WarnPhone: store.FlagPhone, channel.WarnValue: store.FlagValue}

// finish stores the end of the plan: from here on the run is resumed, not begun again.
func (p *planner) finish(res *cohort.Result, sp trace.Span) error {
	if p.dry == nil {
		if err := p.store.SetSkips(p.stop, p.lease, p.skips); err != nil {
			return err
		}
	}
	t := p.totals
	t.Evaluated, t.Unchanged, t.Batches = int64(res.Users.GetCardinality()), p.unchanged, int64(p.index)
	t.SkippedBy = map[string]int64{}
	for reason, set := range p.skips {
		if n := int64(set.GetCardinality()); n > 0 {
			t.SkippedBy[reason] = n
			t.Skipped += n
		}
	}
	if !t.Balanced() {
		return fmt.Errorf("the plan accounts for %d of %d users", t.Sent+t.Unchanged+t.Skipped+t.Failed+t.Pending, t.Evaluated)
	}
	if p.dry != nil {
		p.run.Totals = t
		return nil
	}
	overlap := false
	for _, h := range p.adding {
		if _, ok := p.removing[h]; ok {
			overlap = true
			break
		}
	}
	p.run.Totals = t
	p.run.Plan = &store.Plan{RemovesFirst: overlap, ProfileSeq: res.ProfileSeq, Fingerprint: p.dest.Fingerprint, Channel: p.dest.Channel.Name(), Pages: p.pages, Segment: p.key, ByName: p.traits.ByName()}
	sp.SetAttributes(attribute.Int("cohortbridge.batches", p.index), attribute.Bool("cohortbridge.removes_first", overlap))
	return p.save(store.Delivering)
}
