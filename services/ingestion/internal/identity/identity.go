// Package identity decides which user an event or profile update belongs to, by
// the rules of the project's identity system, and records links between ids.
package identity

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/profile"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
)

// MaxCluster is the number of ids a user may have in ORIGINAL projects.
const MaxCluster = 500

// Kinds of warnings.
const (
	// WarnPartnerAlias: a partner id property names an id that is another user's.
	WarnPartnerAlias = "PARTNER_ALIAS_CONFLICT"
	// WarnPartnerID: a partner id property holds a value that stands for "no id".
	WarnPartnerID = "PARTNER_ID_INVALID"
	// WarnDeviceLink: a device that belongs to one user was sent with another.
	WarnDeviceLink = "DEVICE_LINK_REFUSED"
	// WarnMerge: an $identify, $create_alias or $merge was refused.
	WarnMerge = "IDENTITY_MERGE_REFUSED"
)

// WarningText says what a kind of warning means and what to do about it.
func WarningText(kind string) string {
	switch kind {
	case WarnPartnerID:
		return "A partner id property was set to a value that is no id: a placeholder such as null or n/a, true or false, a list or an object. These users are not exported to the partner: give each user their own partner id, or unset it."
	case WarnPartnerAlias:
		return "A partner id property was set to a value that already belongs to another user. These users are not exported to the partner: give each user their own partner id."
	case WarnDeviceLink:
		return "Events carried a $device_id that is already linked to another $user_id. The first link is kept: reset the device id when a user logs out."
	case WarnMerge:
		return "An $identify, $create_alias or $merge event asked for a link that was refused: ids that are missing, malformed or placeholders, an id that is linked already, or more than 500 ids of one user. The events are stored, each with its reason in $failure_reason; the ids stay apart."
	default:
		return kind
	}
}

// Explain says what a kind of link was made by.
func Explain(r ledger.Reason) string {
	switch r {
	case ledger.FirstSeen:
		return "the id that the user was first seen with"
	case ledger.DeviceLink:
		return "an event carried this $device_id and the $user_id together"
	case ledger.Identify:
		return "an $identify event joined this anonymous id with the identified one"
	case ledger.Alias:
		return "a $create_alias event made this id an alias"
	case ledger.MergeCall:
		return "a $merge event joined the two ids"
	case ledger.PartnerAlias:
		return "a partner id property of the profile holds this value"
	default:
		return ""
	}
}

// PartnerProperties are the profile properties whose value becomes an alias.
var PartnerProperties = []string{"$CleverTap_user_id", "$leanplum_user_id", "$moengage_user_id", "$onesignal_user_id", "$apptimize_user_id", "$vwo_user_id"}

// Resolver gives events their user numbers.
type Resolver struct {
	ledger ledger.Ledger
	cache  *Cache
	now    project.Clock
	locks  sync.Map // project id → *sync.Mutex, held from a transaction's begin until the cache knows it
}

// NewResolver makes a resolver over a ledger with a cache in front.
func NewResolver(l ledger.Ledger, c *Cache, now project.Clock) *Resolver {
	return &Resolver{ledger: l, cache: c, now: now}
}

// System is the identity system in force for a project: the one asked for when
// its first data came.
func (r *Resolver) System(ctx context.Context, p *project.Project) (project.IdentitySystem, error) {
	return r.ledger.Freeze(ctx, p.ID, p.Identity)
}

// Known fills in the user numbers the cache knows and returns the events that
// need the ledger: unknown ids, links that are not settled, identity calls.
func (r *Resolver) Known(events []*event.Event, system func(*project.Project) project.IdentitySystem) (rest []*event.Event) {
	for _, ev := range events {
		if ev.Name == "$create_alias" && system(ev.Project) == project.Legacy {
			return events // later events of the batch may get another number by it
		}
	}
	var promote []*event.Event
	r.cache.mu.RLock()
	for _, ev := range events {
		if len(ev.Arrival) == 0 {
			if ev.IsIdentity() && system(ev.Project) != project.Simplified {
				rest = append(rest, ev)
			}
			continue
		}
		e, ok, old := r.cache.get(ev.Project.ID, ev.Arrival)
		if !ok {
			rest = append(rest, ev)
			continue
		}
		if ev.UserNo = e.no; e.alias {
			ev.Trace()
		}
		if old {
			promote = append(promote, ev)
		}
		if ev.Link != nil {
			if l, ok, _ := r.cache.get(ev.Project.ID, ev.Link); !ok || l.canonical != e.canonical {
				rest = append(rest, ev)
			}
		} else if ev.IsIdentity() && system(ev.Project) != project.Simplified {
			rest = append(rest, ev)
		}
	}
	r.cache.mu.RUnlock()
	if len(promote) > 0 {
		r.cache.mu.Lock()
		for _, ev := range promote {
			if e, ok, old := r.cache.get(ev.Project.ID, ev.Arrival); ok && old {
				r.cache.put(ev.Project.ID, string(ev.Arrival), e)
			}
		}
		r.cache.mu.Unlock()
	}
	return rest
}

// Resolve gives the rest of some batches their numbers, in one ledger transaction
// per project, and those after them whose id moved to another user by one of them.
// New users and links are durable when it returns nil.
func (r *Resolver) Resolve(ctx context.Context, events []*event.Event, batches ...[]*event.Event) error {
	byProject := map[*project.Project][]*event.Event{}
	for _, ev := range events {
		byProject[ev.Project] = append(byProject[ev.Project], ev)
	}
	for p, list := range byProject {
		system, err := r.System(ctx, p)
		if err != nil {
			return err
		}
		var undo []func()
		var moves []move
		err = r.Update(ctx, p.ID, system, func(_ ledger.Tx, s *Session) error {
			undo, err = s.events(list)
			moves = s.moves
			return err
		})
		if err != nil {
			for _, f := range undo {
				f()
			}
			return err
		}
		for _, batch := range batches {
			follow(batch, p.ID, moves)
		}
	}
	return nil
}

// move is a known id that got another number while the session looked at event by.
type move struct {
	by *event.Event
	id string
	no uint64
}

// follow gives events that come after a move in their batch the new number: those
// whose old one the cache knew have not been looked at again.
func follow(batch []*event.Event, projectID int64, moves []move) {
	if len(moves) == 0 {
		return
	}
	moved := map[string]uint64{}
	for _, ev := range batch {
		for _, m := range moves {
			if m.by == ev {
				moved[m.id] = m.no
			}
		}
		if no, ok := moved[string(ev.Arrival)]; ok && ev.Project.ID == projectID {
			ev.UserNo = no
			ev.Trace() // whose number it now is was somebody before
		}
	}
}

// Update runs fn in one ledger transaction. The cache learns of the transactions
// of a project in their order: an id that was taken over stays with its new user.
func (r *Resolver) Update(ctx context.Context, projectID int64, system project.IdentitySystem, fn func(ledger.Tx, *Session) error) error {
	l, _ := r.locks.LoadOrStore(projectID, new(sync.Mutex))
	lock, _ := l.(*sync.Mutex)
	lock.Lock()
	defer lock.Unlock()
	var s *Session
	err := r.ledger.Update(ctx, projectID, func(tx ledger.Tx) error {
		s = newSession(tx, system, r.now())
		return fn(tx, s)
	})
	if err == nil {
		r.remember(projectID, s)
	}
	return err
}

// remember puts what a committed session learned into the cache.
func (r *Resolver) remember(projectID int64, s *Session) {
	r.cache.mu.Lock()
	defer r.cache.mu.Unlock()
	for id, row := range s.ids {
		if row != nil {
			r.cache.put(projectID, id, entry{row.UserNo, row.Canonical, row.Alias})
		}
	}
}

// Session applies identity rules inside one transaction. It keeps what it has
// read and written, so that a batch costs few queries.
type Session struct {
	tx     ledger.Tx
	system project.IdentitySystem
	now    time.Time
	ids    map[string]*ledger.ID // nil: known to be unknown
	at     *event.Event          // the event that is looked at
	moves  []move

	profile func(no uint64) (profile.Properties, error)
}

func newSession(tx ledger.Tx, system project.IdentitySystem, now time.Time) *Session {
	s := &Session{tx: tx, system: system, now: now, ids: map[string]*ledger.ID{}}
	s.profile = s.storedProfile
	return s
}

// ReadProfiles makes the session see profiles as a caller has them who has not
// written them yet; read returns no properties for a user without a profile.
func (s *Session) ReadProfiles(read func(no uint64) (profile.Properties, error)) { s.profile = read }

// Load reads ids that will be needed, in one go.
func (s *Session) Load(ids []string) error {
	var miss []string
	for _, id := range ids {
		if _, ok := s.ids[id]; !ok {
			s.ids[id] = nil
			miss = append(miss, id)
		}
	}
	found, err := s.tx.IDs(miss)
	if err != nil {
		return err
	}
	for id, row := range found {
		s.ids[id] = &row
	}
	return nil
}

// Get returns an id's row, nil when it is unknown.
func (s *Session) Get(id string) (*ledger.ID, error) {
	if _, ok := s.ids[id]; !ok {
		if err := s.Load([]string{id}); err != nil {
			return nil, err
		}
	}
	return s.ids[id], nil
}

// Create makes users for those of the ids that are unknown.
func (s *Session) Create(ids []string) error {
	if err := s.Load(ids); err != nil {
		return err
	}
	var unknown []string
	seen := map[string]bool{}
	for _, id := range ids {
		if s.ids[id] == nil && !seen[id] {
			seen[id] = true
			unknown = append(unknown, id)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	rows, err := s.tx.NewUsers(unknown, s.now)
	for i := range rows {
		s.ids[rows[i].DistinctID] = &rows[i]
	}
	return err
}

func (s *Session) ensure(id string) (*ledger.ID, error) {
	if err := s.Create([]string{id}); err != nil {
		return nil, err
	}
	return s.ids[id], nil
}

// events resolves a project's events in order. undo takes back what was written
// onto the events, for when the transaction fails after all.
func (s *Session) events(list []*event.Event) (undo []func(), err error) {
	// New users first, in the order they came, all in one statement.
	need := make([]string, 0, len(list))
	var linked []string
	for _, ev := range list {
		if len(ev.Arrival) > 0 {
			need = append(need, string(ev.Arrival))
		}
		if ev.Link != nil {
			linked = append(linked, string(ev.Link))
		}
	}
	if err := s.Load(append(linked, need...)); err != nil {
		return nil, err
	}
	if s.system != project.Legacy {
		if err := s.Create(need); err != nil {
			return nil, err
		}
	}
	for _, ev := range list {
		s.at = ev
		var why string
		switch {
		case ev.Link != nil:
			why, err = s.device(ev)
		case ev.IsIdentity() && s.system != project.Simplified:
			why, err = s.call(ev)
		}
		if err != nil {
			return undo, err
		}
		if why != "" {
			undo = append(undo, note(ev, s.system, why))
		}
		if len(ev.Arrival) > 0 {
			row, err := s.ensure(string(ev.Arrival))
			if err != nil {
				return undo, err
			}
			if ev.UserNo = row.UserNo; row.Alias {
				undo = append(undo, ev.Trace())
			}
		}
	}
	return undo, nil
}

// failures says in words why a call was refused; without characters that JSON escapes.
var failures = map[string]string{
	missingIDs:    "an id that the event must name is missing, or both are the same",
	unreadableIDs: "an id is not a text",
	invalidID:     "an id is a placeholder such as null, or longer than 255 bytes",
	noUUID:        "the anonymous id is not a UUID of version 4",
	notTwo:        "a merge names exactly two ids",
	linkedToOther: "the id belongs to another user already",
	tooManyIDs:    "the user would have more than 500 ids",
}

// note writes onto the event why its link was refused.
func note(ev *event.Event, system project.IdentitySystem, why string) (undo func()) {
	before := ev.Props
	if system == project.Simplified {
		ev.Props = event.Put(before, "$identity_failure_reason", `"`+why+`"`)
	} else {
		ev.Props = event.Put(event.Put(before, "$failure_reason", `"`+why+`"`), "$failure_description", `"`+failures[why]+`"`)
	}
	return func() { ev.Props = before }
}

// device links the event's device to its user (SIMPLIFIED). The first link stays.
func (s *Session) device(ev *event.Event) (refused string, err error) {
	user, err := s.ensure(string(ev.Arrival))
	if err != nil {
		return "", err
	}
	device, err := s.Get(string(ev.Link))
	switch {
	case err != nil:
		return "", err
	case device == nil:
		return "", s.alias(string(ev.Link), user.Canonical, s.link(ledger.DeviceLink, string(ev.Arrival)))
	case device.Canonical == user.Canonical:
		return "", nil
	case device.Canonical == device.UserNo && device.Reason == ledger.FirstSeen:
		return "", s.merge(device.Canonical, user.Canonical, s.link(ledger.DeviceLink, string(ev.Arrival)))
	}
	return "device_linked_to_another_user", s.tx.Warn(WarnDeviceLink, s.now)
}

func (s *Session) link(r ledger.Reason, to string) ledger.Link {
	return ledger.Link{Reason: r, At: s.now, To: to}
}

func (s *Session) alias(id string, canonical uint64, l ledger.Link) error {
	row, err := s.tx.AddAlias(id, canonical, l)
	s.ids[id] = &row
	return err
}

// merge makes user from part of user into, and corrects what the session knows.
func (s *Session) merge(from, into uint64, l ledger.Link) error {
	props, err := s.profile(from)
	if err != nil {
		return err
	}
	if err := s.tx.Merge(from, into, l); err != nil {
		return err
	}
	for _, row := range s.ids {
		if row != nil && row.Canonical == from {
			row.Canonical = into
			if row.UserNo == from && row.Reason == ledger.FirstSeen {
				row.Reason = l.Reason
			}
		}
	}
	had := PartnerIDs(props)
	if len(had) == 0 {
		return nil
	}
	// What was carried over is now asked for by the other user; the rest is free.
	if props, err = s.profile(into); err != nil {
		return err
	}
	has := PartnerIDs(props)
	for _, name := range PartnerProperties {
		v, was := had[name]
		switch {
		case !was:
		case has[name] == v:
			err = s.setPartner(into, name, v, true, false)
		default:
			err = s.release(v)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// isUUID4 reports whether id is a version 4 UUID, as $identify requires of
// anonymous ids.
func isUUID4(id string) bool {
	if len(id) != 36 || id[14] != '4' || !strings.ContainsRune("89abAB", rune(id[19])) {
		return false
	}
	for i := range len(id) {
		c := id[i]
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if c != '-' {
				return false
			}
		} else if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return true
}
