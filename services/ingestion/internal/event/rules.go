package event

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"strconv"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
)

// Rules are the circumstances an event is judged by.
type Rules struct {
	// Endpoint is the route.
	Endpoint Endpoint
	// Strict is `strict=1` of /import: every rule is enforced.
	Strict bool
	// OptionalInsertID lets a strict import leave the insert id out, as typed events may.
	OptionalInsertID bool
	// NowMS is the server's time, Unix milliseconds.
	NowMS int64
	// System is the project's identity system.
	System project.IdentitySystem
	// HashAddress, when not empty, is the client's address, to be hashed into an id
	// for events without one (`ip=1` on /track).
	HashAddress string
}

const (
	oldestMS  = 31_536_000_000 // 1971-01-01
	futureMS  = 3_600_000
	trackBack = 5 * DayMS
)

var banned = map[string]bool{
	"00000000-0000-0000-0000-000000000000": true, "anon": true, "anonymous": true, "nil": true, "none": true, "null": true,
	"n/a": true, "na": true, "undefined": true, "unknown": true, "<nil>": true, "0": true, "-1": true, "true": true, "false": true, "[]": true, "{}": true,
}

// Banned reports whether id is one of the 17 values that stand for "no id".
func Banned(id []byte) bool { return banned[string(id)] }

// Finish applies the rules to a decoded event: time, insert id, and the id it
// arrives under; then computes its hash. It returns why the event can't be stored.
func (ev *Event) Finish(r *Rules) *Failure {
	if f := ev.finishTime(r); f != nil {
		return f
	}
	if f := ev.finishInsertID(r); f != nil {
		return f
	}
	if f := ev.finishID(r); f != nil {
		return f
	}
	ev.SetHash()
	return nil
}

func (ev *Event) finishTime(r *Rules) *Failure {
	ev.Received = r.NowMS
	if !ev.HasTime {
		if r.Strict {
			return ev.Invalid("properties.time", "missing; must be given in seconds or milliseconds since the epoch")
		}
		ev.TimeMS, ev.SentMS, ev.HasTime = r.NowMS, r.NowMS, true
		return nil
	}
	ev.SentMS = ev.TimeMS
	switch {
	case ev.TimeMS < oldestMS:
		return ev.Invalid("properties.time", "must not be before 1971-01-01")
	case r.Endpoint == Track && ev.TimeMS < r.NowMS-trackBack:
		return ev.Invalid("properties.time", "/track takes the last 5 days only; use /import")
	case ev.TimeMS > r.NowMS+futureMS && r.Strict:
		return ev.Invalid("properties.time", "must not be more than an hour in the future")
	case ev.TimeMS > r.NowMS:
		ev.TimeMS = r.NowMS // SentMS keeps what the sender wrote, so that a re-send is still a duplicate
	}
	return nil
}

func (ev *Event) finishInsertID(r *Rules) *Failure {
	why := ""
	switch {
	case !ev.hasInsert:
		why = "missing; send an id of the event's own, the same when it is sent again"
	case ev.badInsert:
		why = NotUTF8
	case len(ev.InsertID) == 0:
		why = "must be a non-empty string"
	case len(ev.InsertID) > MaxInsertID:
		why = "must be at most 36 bytes"
	case Banned(ev.InsertID):
		why = Placeholder + "an id of the event's own"
	case bytes.ContainsFunc(ev.InsertID, notInsertID):
		if !r.Strict { // there such an id still identifies the event
			return nil
		}
		why = "must be of letters, digits and '-' only"
	}
	if why == "" {
		return nil
	}
	if r.Strict && (ev.hasInsert || !r.OptionalInsertID) {
		return ev.Invalid("properties.$insert_id", why)
	}
	ev.InsertID = strconv.AppendUint(strconv.AppendUint(make([]byte, 0, 32), rand.Uint64(), 36), rand.Uint64(), 36) //nolint:gosec // unique, not secret
	ev.Generated = true
	return nil
}

// notInsertID finds what may not be in an `$insert_id`.
func notInsertID(c rune) bool {
	return c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
}

// Placeholder is what is wrong with a banned id; what to send instead follows.
const Placeholder = "a placeholder such as null or unknown; send "

func (ev *Event) finishID(r *Rules) *Failure {
	if r.System == project.Simplified {
		ev.simplified()
	} else {
		ev.Arrival = ev.DistinctID
		if r.System == project.Original {
			ev.Arrival = OriginalID(ev.Arrival)
		}
	}
	if ev.Arrival == nil {
		if r.Strict && !ev.IsIdentity() {
			return ev.Invalid("properties.distinct_id", `missing; send "" for an event of nobody`)
		}
		if r.HashAddress != "" {
			h := sha256.Sum256([]byte(ev.Project.Token + "\x00" + r.HashAddress))
			ev.Arrival = hex.AppendEncode(nil, h[:16])
		}
	}
	if len(ev.Arrival) > MaxText {
		return ev.Invalid("properties.distinct_id", "must be at most 255 bytes")
	}
	if len(ev.Arrival) != 0 && Banned(ev.Arrival) {
		return ev.Invalid("properties.distinct_id", Placeholder+"the user's own id")
	}
	return nil
}

// IsIdentity reports whether the event's name is one of the identity calls.
func (ev *Event) IsIdentity() bool {
	return ev.Name == "$identify" || ev.Name == "$create_alias" || ev.Name == "$merge"
}

func (ev *Event) simplified() {
	switch {
	case len(ev.UserID) > 0:
		ev.Arrival = ev.UserID
		if len(ev.DeviceID) > 0 && !Banned(ev.DeviceID) && !Banned(ev.UserID) && !ev.IsIdentity() {
			if link := DeviceID(ev.DeviceID); len(link) <= MaxText { // no event may have a longer id
				ev.Link = link
			}
		}
	case len(ev.DeviceID) > 0:
		ev.Arrival = DeviceID(ev.DeviceID)
	default:
		ev.Arrival = ev.DistinctID
	}
}

// OriginalID is the id that an ORIGINAL project knows an id by: the browser SDK's
// anonymous id, "$device:" and a UUID, goes without the prefix, as $identify names it.
func OriginalID[T ~string | ~[]byte](id T) T {
	if len(id) == len(DevicePrefix)+36 && string(id[:len(DevicePrefix)]) == DevicePrefix {
		return id[len(DevicePrefix):]
	}
	return id
}

// DeviceID is the id under which a device lives: "$device:" and its id.
func DeviceID(device []byte) []byte {
	if bytes.HasPrefix(device, []byte(DevicePrefix)) {
		return device
	}
	return append(append(make([]byte, 0, len(DevicePrefix)+len(device)), DevicePrefix...), device...)
}
