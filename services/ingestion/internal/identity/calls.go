package identity

import (
	"bytes"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/profile"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
)

// Why a call was refused: the words of $failure_reason.
const (
	missingIDs    = "missing_ids"
	unreadableIDs = "unreadable_ids"
	invalidID     = "invalid_id"
	noUUID        = "anon_id_is_not_uuid_v4"
	notTwo        = "distinct_ids_must_be_two"
	linkedToOther = "already_linked_to_another_user"
	tooManyIDs    = "too_many_ids"
)

// call applies an $identify, $create_alias or $merge event (ORIGINAL; LEGACY
// knows $create_alias only) and returns why it was refused, or "".
func (s *Session) call(ev *event.Event) (refused string, err error) {
	if s.system == project.Legacy && ev.Name != "$create_alias" {
		return "", nil
	}
	switch ev.Name {
	case "$identify":
		return s.identify(ev)
	case "$create_alias":
		var in struct {
			Alias string `json:"alias"`
		}
		switch {
		case json.Unmarshal(ev.Props, &in) != nil:
			return s.refuse(unreadableIDs)
		case len(ev.Arrival) == 0 || in.Alias == "":
			return s.refuse(missingIDs)
		case in.Alias == string(ev.Arrival):
			return "", nil
		case s.system == project.Legacy:
			return s.legacyAlias(string(ev.Arrival), in.Alias)
		}
		return s.join(string(ev.Arrival), in.Alias, ledger.Alias)
	default: // $merge
		var in struct {
			IDs []string `json:"$distinct_ids"`
		}
		switch {
		case json.Unmarshal(ev.Props, &in) != nil:
			return s.refuse(unreadableIDs)
		case len(in.IDs) != 2 || in.IDs[0] == "" || in.IDs[1] == "":
			return s.refuse(notTwo)
		}
		infer(ev, in.IDs[0])
		return s.join(in.IDs[0], in.IDs[1], ledger.MergeCall)
	}
}

func (s *Session) identify(ev *event.Event) (refused string, err error) {
	var in struct {
		Identified string `json:"$identified_id"`
		Anon       string `json:"$anon_id"`
		AnonSDK    string `json:"$anon_distinct_id"`
	}
	if json.Unmarshal(ev.Props, &in) != nil {
		return s.refuse(unreadableIDs)
	}
	known, anon := in.Identified, in.Anon
	if known == "" {
		known = string(ev.Arrival)
	}
	if anon == "" {
		anon = in.AnonSDK
	}
	anon = strings.TrimPrefix(anon, event.DevicePrefix)
	infer(ev, known)
	if known == "" || anon == "" || known == anon {
		return s.refuse(missingIDs)
	}
	if !isUUID4(anon) {
		return s.refuse(noUUID)
	}
	return s.join(known, anon, ledger.Identify)
}

// infer gives a call without distinct_id the id it names, as Mixpanel does. The
// event deduplicates under it.
func infer(ev *event.Event, id string) {
	if len(ev.Arrival) == 0 && PossibleID(id) {
		ev.Arrival = []byte(id)
		ev.SetHash()
	}
}

func (s *Session) refuse(why string) (string, error) { return why, s.tx.Warn(WarnMerge, s.now) }

// join makes id other one of the user of id known.
func (s *Session) join(known, other string, r ledger.Reason) (refused string, err error) {
	if !PossibleID(known) || !PossibleID(other) {
		return s.refuse(invalidID)
	}
	user, err := s.ensure(known)
	if err != nil {
		return "", err
	}
	row, err := s.Get(other)
	if err != nil {
		return "", err
	}
	if row != nil && row.Canonical == user.Canonical {
		return "", nil
	}
	// An anonymous id or alias maps to one user only; $merge may join two clusters.
	if row != nil && r != ledger.MergeCall && (row.Canonical != row.UserNo || row.Reason != ledger.FirstSeen) {
		return s.refuse(linkedToOther)
	}
	nos := []uint64{user.Canonical}
	if row != nil {
		nos = append(nos, row.Canonical)
	}
	users, err := s.tx.Users(nos)
	if err != nil {
		return "", err
	}
	size := users[user.Canonical].IDs + 1
	if row != nil {
		size = users[user.Canonical].IDs + users[row.Canonical].IDs
	}
	if size > MaxCluster {
		return s.refuse(tooManyIDs)
	}
	if row == nil {
		return "", s.alias(other, user.Canonical, s.link(r, known))
	}
	if err := s.carryProfile(row.Canonical, user.Canonical); err != nil {
		return "", err
	}
	return "", s.merge(row.Canonical, user.Canonical, s.link(r, known))
}

// carryProfile fills the properties that user into lacks from user from, before
// from is merged away.
func (s *Session) carryProfile(from, into uint64) error {
	rows, err := s.tx.Profiles([]uint64{from, into})
	if err != nil {
		return err
	}
	src, ok := rows[from]
	if !ok {
		return nil
	}
	props, err := profile.Parse(src.Props)
	if err != nil {
		return err
	}
	dst, err := profile.Parse(rows[into].Props)
	if err != nil {
		return err
	}
	for k, v := range dst {
		props[k] = v
	}
	out := props.JSON()
	if bytes.Equal(out, rows[into].Props) {
		return nil
	}
	return s.tx.PutProfiles([]ledger.Profile{{UserNo: into, Props: out, Updated: s.now}})
}

// legacyAlias makes alias an id of the user of id from now on; what alias did
// before stays where it was.
func (s *Session) legacyAlias(id, alias string) (refused string, err error) {
	if !PossibleID(alias) {
		return s.refuse(invalidID)
	}
	user, err := s.ensure(id)
	if err != nil {
		return "", err
	}
	row, err := s.Get(alias)
	switch {
	case err != nil:
		return "", err
	case row == nil:
		return "", s.alias(alias, user.Canonical, s.link(ledger.Alias, id))
	case row.Canonical == user.Canonical:
		return "", nil
	case row.Reason != ledger.FirstSeen:
		return s.refuse(linkedToOther)
	}
	row.UserNo, row.Canonical, row.Reason, row.Alias = user.Canonical, user.Canonical, ledger.Alias, true
	return "", s.tx.Repoint(alias, user.Canonical, s.link(ledger.Alias, id))
}

// PossibleID reports whether an id can be somebody's: not one of the values
// that stand for "no id", and not longer than an id may be.
func PossibleID(value string) bool {
	return value != "" && len(value) <= event.MaxText && !event.Banned([]byte(value))
}

// PartnerIDs are the partner ids of a profile by their property.
func PartnerIDs(p profile.Properties) map[string]string {
	ids := map[string]string{}
	for _, name := range PartnerProperties {
		if v, ok := p.ID(name); ok {
			ids[name] = v
		}
	}
	return ids
}

// SetPartners follows a change of the partner properties of canonical user no from
// before to what the profile holds now: a new value becomes an alias of the user,
// or is noted as a conflict and counted as a warning when it is somebody else's; a
// value that is no longer held goes to a user who waits for it. written says
// whether a property was written again, which asks again for a value in conflict.
func (s *Session) SetPartners(no uint64, before map[string]string, written func(name string) bool) error {
	props, err := s.profile(no)
	if err != nil {
		return err
	}
	after := PartnerIDs(props)
	for _, name := range PartnerProperties {
		v, set := after[name]
		old, was := before[name]
		same := v == old && set == was
		if same && (!set || !PossibleID(v) || !written(name)) {
			continue
		}
		if same {
			row, err := s.Get(v)
			if err != nil {
				return err
			}
			if row != nil && row.Canonical == no {
				continue
			}
		}
		if err := s.setPartner(no, name, v, set, !same); err != nil {
			return err
		}
	}
	for _, name := range PartnerProperties {
		if old, was := before[name]; was && after[name] != old {
			if err := s.release(old); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Session) setPartner(no uint64, name, value string, set, warn bool) error {
	waits, kind := "", ""
	switch {
	case !set:
	case !PossibleID(value):
		kind = WarnPartnerID
	default:
		own, err := s.claim(value, no)
		if err != nil {
			return err
		}
		if !own {
			waits, kind = value, WarnPartnerAlias
		}
	}
	if err := s.tx.SetConflict(no, name, waits); err != nil || !warn || kind == "" {
		return err
	}
	return s.tx.Warn(kind, s.now)
}

// claim makes value an alias of canonical user no, unless it is somebody else's.
func (s *Session) claim(value string, no uint64) (own bool, err error) {
	row, err := s.Get(value)
	switch {
	case err != nil:
		return false, err
	case row != nil && row.Canonical == no:
		return true, nil
	case s.system == project.Original && !s.room(no):
		return false, nil
	case row == nil:
		return true, s.alias(value, no, s.link(ledger.PartnerAlias, ""))
	case row.Reason == ledger.PartnerAlias:
		held, err := s.holds(row.Canonical, value)
		if err != nil || held {
			return false, err
		}
		return true, s.take(value, no)
	case row.Reason == ledger.FirstSeen && row.Canonical == row.UserNo:
		// A bare id (events, but no profile and no other id) is the partner's own
		// traffic that came before: it becomes the user's.
		users, err := s.tx.Users([]uint64{row.Canonical})
		if err != nil || users[row.Canonical].IDs > 1 {
			return false, err
		}
		props, err := s.profile(row.Canonical)
		if err != nil || len(props) > 0 {
			return false, err
		}
		return true, s.merge(row.Canonical, no, s.link(ledger.PartnerAlias, ""))
	}
	return false, nil
}

// release gives a partner id that its user no longer holds to the first user who
// waits for it. Without one it stays where it is until somebody claims it.
func (s *Session) release(value string) error {
	row, err := s.Get(value)
	if err != nil || row == nil || row.Reason != ledger.PartnerAlias {
		return err
	}
	if held, err := s.holds(row.Canonical, value); err != nil || held {
		return err
	}
	list, err := s.tx.Waiting(value)
	if err != nil {
		return err
	}
	for _, w := range list {
		held, err := s.holds(w.UserNo, value)
		if err != nil {
			return err
		}
		if !held || s.system == project.Original && !s.room(w.UserNo) {
			continue
		}
		for _, same := range list {
			if same.UserNo == w.UserNo {
				if err := s.tx.SetConflict(w.UserNo, same.Property, ""); err != nil {
					return err
				}
			}
		}
		return s.take(value, w.UserNo)
	}
	return nil
}

// take makes a partner id one of user no's from now on.
func (s *Session) take(value string, no uint64) error {
	row := s.ids[value]
	row.UserNo, row.Canonical, row.At, row.Alias = no, no, s.now, true
	s.moves = append(s.moves, move{s.at, value, no})
	return s.tx.Repoint(value, no, s.link(ledger.PartnerAlias, ""))
}

// holds reports whether a partner property of the user has the value.
func (s *Session) holds(no uint64, value string) (bool, error) {
	props, err := s.profile(no)
	if err != nil {
		return false, err
	}
	for _, v := range PartnerIDs(props) {
		if v == value {
			return true, nil
		}
	}
	return false, nil
}

// storedProfile is the profile as the transaction has it.
func (s *Session) storedProfile(no uint64) (profile.Properties, error) {
	rows, err := s.tx.Profiles([]uint64{no})
	if err != nil {
		return nil, err
	}
	return profile.Parse(rows[no].Props)
}

func (s *Session) room(no uint64) bool {
	users, err := s.tx.Users([]uint64{no})
	return err == nil && users[no].IDs < MaxCluster
}
