// Package modeltest holds ingestion against a model of it: slow, obvious, in
// memory, and written from the documents (Mixpanel's protocol and
// docs/decisions), not from the code. Random histories are given to both; what
// the two show must be equal.
package modeltest_test

import (
	"fmt"
	"strings"
)

// closedMonthRule says that a month that is over counts users by the merges made
// before its end only; later merges do not change what it counts.
const closedMonthRule = true

// The identity systems, as numbers of ingestion.IdentitySystem.
const (
	simplified = 1
	original   = 2
	legacy     = 3
)

// Why an id belongs to its user.
const (
	firstSeen    = "FIRST_SEEN"
	deviceLink   = "DEVICE_LINK"
	identify     = "IDENTIFY"
	aliasCall    = "ALIAS"
	mergeCall    = "MERGE"
	partnerAlias = "PARTNER_ALIAS"
)

// Kinds of warnings.
const (
	warnPartnerAlias = "PARTNER_ALIAS_CONFLICT"
	warnPartnerID    = "PARTNER_ID_INVALID"
	warnDevice       = "DEVICE_LINK_REFUSED"
	warnMerge        = "IDENTITY_MERGE_REFUSED"
)

// maxCluster is the number of ids of a user in ORIGINAL projects.
const maxCluster = 500

// project is all the model knows of one project.
type project struct {
	id          int64
	token       string
	system      int
	nameOnly    bool
	byEventTime bool
	sources     map[string][]string // accepted markers by rule, in place of the rules' own

	accounts   []*account // account n has user number n+1
	ids        map[string]*link
	events     []*storedEvent
	seen       map[string]bool
	warnings   map[string]int64
	duplicates int64 // since the last start
}

// account is what one number stands for.
type account struct {
	n        int
	first    string
	into     *account // the user it was merged into, nil while it is a user
	mergedAt int64
	profile  map[string]any // nil: none
	updated  int64
}

// link is what one id stands for.
type link struct {
	account *account
	reason  string
	at      int64
}

// storedEvent is one event that counts.
type storedEvent struct {
	name               string
	time, received     int64
	account            *account // nil: nobody's
	arrival            string
	insert             string
	generated, imports bool
	source             string
	rule               string
	guardrail          bool
	props              map[string]any
}

func newProject(id int64, system int) *project {
	return &project{id: id, token: fmt.Sprint("tok-", id), system: system, ids: map[string]*link{}, seen: map[string]bool{}, warnings: map[string]int64{}}
}

// user is the user an account is part of now.
func (a *account) user() *account {
	for a.into != nil {
		a = a.into
	}
	return a
}

// userAt is the user an account was part of just before an instant.
func (a *account) userAt(ms int64) *account {
	for a.into != nil && a.mergedAt < ms {
		a = a.into
	}
	return a
}

// idsOf lists the ids of a user.
func (p *project) idsOf(u *account) (out []string) {
	for id, l := range p.ids {
		if l.account.user() == u {
			out = append(out, id)
		}
	}
	return out
}

// ensure makes a user of an id nobody has seen.
func (p *project) ensure(id string, now int64) *link {
	if p.ids[id] == nil {
		a := &account{n: len(p.accounts), first: id}
		p.accounts = append(p.accounts, a)
		p.ids[id] = &link{account: a, reason: firstSeen, at: now}
	}
	return p.ids[id]
}

func (p *project) warn(kind string) { p.warnings[kind]++ }

// possibleID: not one of the values that stand for "no id", and not too long.
func possibleID(id string) bool { return id != "" && len(id) <= 255 && !banned[id] }

var banned = map[string]bool{}

func init() {
	for _, s := range strings.Fields("00000000-0000-0000-0000-000000000000 anon anonymous nil none null n/a na undefined unknown <nil> 0 -1 true false [] {}") {
		banned[s] = true
	}
}

// former is the user who was first seen with an id that is another user's now, nil
// when there is none: `$create_alias` took it in a LEGACY project.
func (p *project) former(id string) *account {
	for _, a := range p.accounts {
		if a.first == id && a.into == nil && p.ids[id].account.user() != a {
			return a
		}
	}
	return nil
}

// merge makes user from part of user into (both are users, and different).
func (p *project) merge(from, into *account, reason string, now int64) {
	old := from.profile
	from.into, from.mergedAt, from.profile = into, now, nil
	if l := p.ids[from.first]; l.account == from {
		l.reason, l.at = reason, now
	}
	// Partner ids that went with it are asked for by the user now; others are free.
	for _, name := range partnerProperties {
		v, set := partnerID(old, name)
		if !set {
			continue
		}
		if w, ok := partnerID(into.profile, name); ok && w == v {
			p.claim(into, v, now)
		} else {
			p.release(v, now)
		}
	}
}

// linkDevice follows an event that carries both $device_id and $user_id.
func (p *project) linkDevice(user, device string, now int64) (refused string) {
	u := p.ensure(user, now).account.user()
	d := p.ids[device]
	switch {
	case d == nil:
		p.ids[device] = &link{account: u, reason: deviceLink, at: now}
	case d.account.user() == u:
	case d.reason == firstSeen && d.account.into == nil:
		p.merge(d.account, u, deviceLink, now)
	default: // the first link stays
		p.warn(warnDevice)
		return "device_linked_to_another_user"
	}
	return ""
}

// join makes other an id of known's user (ORIGINAL).
func (p *project) join(known, other, reason string, now int64) (refused string) {
	if !possibleID(known) || !possibleID(other) {
		return "invalid_id"
	}
	u := p.ensure(known, now).account.user()
	o := p.ids[other]
	size := len(p.idsOf(u)) + 1
	if o != nil {
		v := o.account.user()
		if v == u {
			return ""
		}
		if reason != mergeCall && (v != o.account || o.reason != firstSeen) {
			return "already_linked_to_another_user"
		}
		size = len(p.idsOf(u)) + len(p.idsOf(v))
	}
	if size > maxCluster {
		return "too_many_ids"
	}
	if o == nil {
		p.ids[other] = &link{account: u, reason: reason, at: now}
		return ""
	}
	from := o.account.user()
	// The user's own properties win; what it lacks comes from the other profile.
	for k, v := range from.profile {
		if _, ok := u.profile[k]; !ok {
			if u.profile == nil {
				u.profile = map[string]any{}
			}
			u.profile[k] = v
			u.updated = now
		}
	}
	p.merge(from, u, reason, now)
	return ""
}

// legacyAlias lets alias stand for id's user from now on; what it did stays.
func (p *project) legacyAlias(id, alias string, now int64) (refused string) {
	if !possibleID(alias) {
		return "invalid_id"
	}
	u := p.ensure(id, now).account.user()
	a := p.ids[alias]
	switch {
	case a != nil && a.account.user() == u:
	case a != nil && a.reason != firstSeen:
		return "already_linked_to_another_user"
	default:
		p.ids[alias] = &link{account: u, reason: aliasCall, at: now}
	}
	return ""
}

// call follows $identify, $create_alias and $merge.
func (p *project) call(e *event, now int64) (refused string) {
	text := func(name string) (string, bool) {
		s, ok := idOrNone(e.props[name])
		return cut(s), ok
	}
	identified, ok1 := text("$identified_id")
	anon, ok2 := text("$anon_id")
	browser, ok3 := text("$anon_distinct_id")
	alias, okAlias := text("alias")
	both, okBoth := texts(e.props["$distinct_ids"])
	readable := map[string]bool{"$identify": ok1 && ok2 && ok3, "$create_alias": okAlias, "$merge": okBoth}
	switch {
	case !readable[e.name]:
		refused = "unreadable_ids"
	case e.name == "$identify":
		if identified == "" {
			identified = e.arrival
		}
		if anon == "" {
			anon = browser
		}
		anon = strings.TrimPrefix(anon, "$device:")
		switch {
		case identified == "" || anon == "" || identified == anon:
			refused = "missing_ids"
		case !uuid4.MatchString(anon):
			refused = "anon_id_is_not_uuid_v4"
		default:
			refused = p.join(identified, anon, identify, now)
		}
	case e.name == "$create_alias":
		switch {
		case e.arrival == "" || alias == "":
			refused = "missing_ids"
		case alias == e.arrival:
		case p.system == legacy:
			refused = p.legacyAlias(e.arrival, alias, now)
		default:
			refused = p.join(e.arrival, alias, aliasCall, now)
		}
	case e.name == "$merge":
		if len(both) != 2 || both[0] == "" || both[1] == "" {
			refused = "distinct_ids_must_be_two"
		} else {
			refused = p.join(both[0], both[1], mergeCall, now)
		}
	}
	if refused != "" {
		p.warn(warnMerge)
	}
	return refused
}

func texts(v any) ([]string, bool) {
	if v == nil {
		return nil, true
	}
	list, ok := v.([]any)
	var out []string
	for _, x := range list {
		s, isText := x.(string)
		ok = ok && isText
		out = append(out, s)
	}
	return out, ok
}
