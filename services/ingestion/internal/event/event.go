// Package event turns one JSON event into a validated Event by Mixpanel's rules
// (docs/mixpanel-compatibility.md). It copies property values as they were
// written: only what the product needs to understand is looked into.
package event

import (
	"bytes"
	"encoding/binary"
	"strings"

	"github.com/cespare/xxhash/v2"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
)

// Limits of one event.
const (
	// MaxBatch is the number of events in a request.
	MaxBatch = 2000
	// MaxBytes is the size of one event's JSON.
	MaxBytes = 1 << 20
	// MaxProperties is the number of properties of an event, and of keys of an
	// object or elements of an array in it.
	MaxProperties = 255
	// MaxDepth is the depth of objects and arrays below `properties`.
	MaxDepth = 3
	// MaxText is the length in characters to which texts and names are cut.
	MaxText = 255
	// MaxNested is the size in bytes of a list or object value.
	MaxNested = 8 << 10
	// MaxInsertID is the length of `$insert_id` in bytes.
	MaxInsertID = 36
)

// DevicePrefix marks an id that is a device's, in SIMPLIFIED projects.
const DevicePrefix = "$device:"

// DayMS is the length of a day in milliseconds.
const DayMS = 86_400_000

// Endpoint is the route an event came by; the rules differ.
type Endpoint uint8

const (
	// Track is /track: token in every event, five days back, mild rules.
	Track Endpoint = iota
	// Import is /import: credential in the request, any time since 1971.
	Import
)

// Event is one validated event. Its byte slices belong to the request's arena
// and live until the request is answered.
type Event struct {
	// Index is the position in the batch as sent, from 0.
	Index int
	// Project is whose event it is.
	Project *project.Project
	// Token is the project token the event carried, if any.
	Token []byte
	// Name is the event's name, cut to MaxText.
	Name string
	// TimeMS is the event's time in Unix milliseconds; HasTime is false until it is known.
	TimeMS  int64
	HasTime bool
	// SentMS is the time as the sender wrote it, before a future time was set to
	// now; it is the one that deduplicates.
	SentMS int64
	// Received is when the server took the event, Unix milliseconds.
	Received int64
	// DistinctID, DeviceID, UserID are as sent; nil when absent.
	DistinctID, DeviceID, UserID []byte
	// Arrival is the id the event counts for by the wire rules, before any merge;
	// empty means the event belongs to nobody.
	Arrival []byte
	// Link is "$device:D" when the event says device D is the user Arrival; nil otherwise.
	Link []byte
	// InsertID is the sender's `$insert_id`, or a generated one.
	InsertID []byte
	// Generated says that InsertID was made by us: the event never deduplicates.
	Generated bool
	// Source and PartnerID are the partner markers `$source` and `$partner_id`.
	Source, PartnerID []byte
	// Props is the JSON object of the other properties, as text, with those that
	// ingestion adds.
	Props []byte
	// Size is the length of the event's JSON as it was sent, in bytes.
	Size int
	// Ignored says the sender set `$ignore`: accept, do not store.
	Ignored bool
	// Hash is the dedupe key within (project, day).
	Hash uint64
	// UserNo is the number of the user Arrival, 0 for nobody.
	UserNo uint64
	// Rule and Guardrail are the MTU verdict.
	Rule      string
	Guardrail bool

	// BadToken says that there is a token and it is no text.
	BadToken bool
	// Before is the id at arrival that an exported event says it had.
	Before []byte

	traced                       bool
	hasInsert, hasName, hasProps bool
	badInsert                    bool // the `$insert_id` is a text that is not UTF-8
}

// Failure is why one event was not stored. Message holds no value of the event.
type Failure struct {
	// Index is the position in the batch as sent.
	Index int
	// InsertID is the sender's, if it was readable.
	InsertID string
	// Field is the dotted path.
	Field string
	// Message is "'<field>' is invalid: <reason>".
	Message string
}

// Invalid makes a failure of one field of ev.
func (ev *Event) Invalid(field, reason string) *Failure {
	return &Failure{Index: ev.Index, InsertID: string(ev.InsertID), Field: field, Message: "'" + field + "' is invalid: " + reason}
}

// Day is the UTC calendar day of SentMS, counted from 1970-01-01: the scope of the hash.
func (ev *Event) Day() int32 { return int32(min(ev.SentMS/DayMS, 1<<30)) } //nolint:gosec // bounded

// SetHash computes the dedupe key: event, time, id at arrival, insert id. An event of
// an export that is sent again says in its trace what its id at arrival was.
func (ev *Event) SetHash() {
	var d xxhash.Digest
	d.Reset()
	_, _ = d.WriteString(ev.Name) // a digest's Write never fails
	var b [10]byte
	t := ev.SentMS
	for i := 1; i <= 8; i++ {
		b[i] = byte(t)
		t >>= 8
	}
	id := ev.Arrival
	if len(ev.Before) > 0 {
		id = ev.Before
	}
	_, _ = d.Write(b[:9])
	_, _ = d.Write(id)
	_, _ = d.Write(b[:1])
	_, _ = d.Write(ev.InsertID)
	if strings.IndexByte(ev.Name, 0) >= 0 || bytes.IndexByte(id, 0) >= 0 {
		// Where a part ends can't be told from its zeros.
		_, _ = d.Write(binary.AppendUvarint(binary.AppendUvarint(b[:0], uint64(len(ev.Name))), uint64(len(id))))
	}
	ev.Hash = d.Sum64()
}

// Trace writes onto the event the id it arrived with, which is not the one that its
// user number was made for. undo takes it back.
func (ev *Event) Trace() (undo func()) {
	if ev.traced {
		return func() {}
	}
	before := ev.Props
	quoted, err := jsontext.AppendQuote(nil, ev.Arrival)
	if err != nil {
		return func() {} // no UTF-8; ids are
	}
	ev.Props, ev.traced = Put(before, TraceProperty, string(quoted)), true
	return func() { ev.Props, ev.traced = before, false }
}

// TraceProperty holds the id an event arrived with
// (https://docs.mixpanel.com/docs/data-structure/property-reference/reserved-properties).
const TraceProperty = "$distinct_id_before_identity"

// Reset empties the event for reuse.
func (ev *Event) Reset(index int) { *ev = Event{Index: index} }
