package server

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/profile"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/where"
)

// exportChunk is how many events are read before those that are wanted are sent.
const exportChunk = 1000

// ExportEvents streams events of a range of UTC days with canonical ids.
func (s *Data) ExportEvents(req *ingestionv1.ExportEventsRequest, stream grpc.ServerStreamingServer[ingestionv1.ExportEventsResponse]) error {
	id, err := projectID(req.GetParent())
	if err != nil {
		return err
	}
	from, err := day("from_date", req.GetFromDate())
	if err != nil {
		return err
	}
	to, err := day("to_date", req.GetToDate())
	if err != nil {
		return err
	}
	if to.Before(from) {
		return fault.Field("to_date", "must not be before from_date")
	}
	expr, err := expression(req.GetWhere(), where.Properties|where.Event|where.User)
	if err != nil {
		return err
	}
	e := &export{ctx: stream.Context(), ledger: s.Ledger, project: id, send: stream.Send, limit: req.GetLimit(), where: expr}
	q := warehouse.ExportQuery{ProjectID: id, FromMS: from.UnixMilli(), ToMS: to.AddDate(0, 0, 1).UnixMilli(), Names: req.GetEvents()}
	if err = s.Warehouse.Export(stream.Context(), q, e.add); err == nil {
		err = e.flush()
	}
	if errors.Is(err, errLimit) {
		return nil
	}
	return err
}

func day(field, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, fault.Field(field, "is required, a UTC day as yyyy-mm-dd")
	}
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		return t, fault.Field(field, "must be a day that exists, as yyyy-mm-dd")
	}
	return t, nil
}

// expression parses an expression; an empty one is nil.
func expression(src string, allowed where.Scope) (*where.Expr, error) {
	if src == "" {
		return nil, nil
	}
	e, err := where.Parse(src, allowed)
	if err != nil {
		return nil, fault.Field("where", "%s", err.Error())
	}
	return e, nil
}

var errLimit = fault.New(fault.Cancelled, "LIMIT_REACHED", "limit reached")

// export collects events and sends those that are wanted in chunks, with the ids
// of their users.
type export struct {
	ctx     context.Context //nolint:containedctx // lives as long as the stream it belongs to
	ledger  ledger.Ledger
	project int64
	send    func(*ingestionv1.ExportEventsResponse) error
	where   *where.Expr
	limit   int64
	sent    int64
	rows    []warehouse.Exported
}

func (e *export) add(row warehouse.Exported) error {
	e.rows = append(e.rows, row)
	if len(e.rows) == exportChunk || e.limit > 0 && e.where == nil && e.sent+int64(len(e.rows)) == e.limit {
		return e.flush()
	}
	return nil
}

// flush sends the wanted ones of the events collected. It ends with errLimit when
// no more may be sent.
func (e *export) flush() error {
	if len(e.rows) == 0 {
		return nil
	}
	names, err := e.ledger.Names(e.ctx, e.project, distinct(e.rows, func(r *warehouse.Exported) uint64 { return r.UserNo }))
	if err != nil {
		return err
	}
	profiles, err := e.profiles(names)
	if err != nil {
		return err
	}
	out := &ingestionv1.ExportEventsResponse{}
	for i := range e.rows {
		r := &e.rows[i]
		name := names[r.UserNo]
		props := properties(r, name)
		if e.where != nil {
			row := &eventRow{event: r, distinctID: name.DistinctID, json: props, profile: profiles[name.Canonical]}
			wanted := e.where.Match(row)
			if row.err != nil {
				return row.err
			}
			if !wanted {
				continue
			}
		}
		verdict := "qualifying"
		if r.Rule != "" {
			verdict = "exempt:" + r.Rule
		}
		out.Events = append(out.Events, &ingestionv1.ExportedEvent{
			Event: r.Name, Time: timestamppb.New(time.UnixMilli(r.TimeMS)), DistinctId: name.DistinctID, InsertId: r.InsertID,
			PropertiesJson: string(props), ProcessingTime: timestamppb.New(time.UnixMilli(r.ReceivedMS)), MtuVerdict: verdict,
		})
		if e.sent++; e.sent == e.limit {
			break
		}
	}
	e.rows = e.rows[:0]
	if len(out.Events) > 0 {
		if err := e.send(out); err != nil {
			return err
		}
	}
	if e.limit > 0 && e.sent == e.limit {
		return errLimit
	}
	return nil
}

// distinct is each user number but 0 once, sorted.
func distinct[T any](rows []T, no func(*T) uint64) []uint64 {
	nos := make([]uint64, 0, len(rows))
	for i := range rows {
		if n := no(&rows[i]); n != 0 {
			nos = append(nos, n)
		}
	}
	slices.Sort(nos)
	return slices.Compact(nos)
}

// profiles reads the profiles of the users when the expression asks for them.
func (e *export) profiles(names map[uint64]ledger.Name) (map[uint64][]byte, error) {
	if e.where == nil || !e.where.Uses(where.User) {
		return nil, nil
	}
	var canonical []uint64
	for _, n := range names {
		canonical = append(canonical, n.Canonical)
	}
	slices.Sort(canonical)
	members, err := e.ledger.Members(e.ctx, e.project, slices.Compact(canonical))
	if err != nil {
		return nil, err
	}
	out := make(map[uint64][]byte, len(members))
	for i := range members {
		out[members[i].UserNo] = members[i].Props
	}
	return out, nil
}

// eventRow is an event as an expression sees it: with the properties that the
// export shows, and the profile of its user.
type eventRow struct {
	event      *warehouse.Exported
	distinctID string
	json       []byte
	profile    []byte

	parsed, user profile.Properties
	err          error
}

// Property implements where.Row.
func (r *eventRow) Property(s where.Scope, name string) where.Value {
	if s == where.User {
		if (name == "distinct_id" || name == "$distinct_id") && r.distinctID != "" { // as in a query of profiles
			return where.Text(r.distinctID)
		}
		return r.lookup(&r.user, r.profile, name)
	}
	switch name {
	case "$time":
		return where.Time(r.event.TimeMS)
	case "time":
		return where.Num(float64(time.UnixMilli(r.event.TimeMS).Unix()))
	case "$event_name":
		return where.Text(r.event.Name)
	case "distinct_id", "$distinct_id":
		return where.Text(r.distinctID)
	case "$insert_id":
		return where.Text(r.event.InsertID)
	case "mp_processing_time_ms", "$mp_api_timestamp_ms":
		return where.Num(float64(r.event.ReceivedMS))
	default:
		return r.lookup(&r.parsed, r.json, name)
	}
}

func (r *eventRow) lookup(into *profile.Properties, b []byte, name string) where.Value {
	if *into == nil {
		p, err := profile.Parse(b)
		if err != nil {
			r.err = err
		}
		*into = p
	}
	return where.JSON((*into)[name])
}

// properties adds what Mixpanel adds to an exported event: $import, and, when the
// user has another canonical id since, that it is so and the id it was stored under.
func properties(r *warehouse.Exported, n ledger.Name) []byte {
	b := r.Props
	if r.Flags&warehouse.FlagImport != 0 {
		b = event.Put(b, "$import", "true")
	}
	if r.UserNo != 0 && n.Canonical != r.UserNo {
		b = event.Put(event.Put(b, "$distinct_id_before_identity", quote(n.Own)), "$is_reshuffled", "true")
	}
	return b
}

func quote(s string) string {
	b, err := jsontext.AppendQuote(nil, s)
	if err != nil {
		return `""`
	}
	return string(b)
}
