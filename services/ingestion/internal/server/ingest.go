// Package server adapts ingestion's gRPC services to the domain packages.
package server

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strconv"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"google.golang.org/protobuf/types/known/structpb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/resource"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ingest"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/profile"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/wire"
)

// Ingestion serves IngestionService.
type Ingestion struct {
	ingestionv1.UnimplementedIngestionServiceServer
	// Ingester does the work, Registry knows the projects.
	Ingester *ingest.Ingester
	Registry project.Registry
}

// IngestRaw takes one HTTP request of Mixpanel's wire.
func (s *Ingestion) IngestRaw(ctx context.Context, req *ingestionv1.IngestRawRequest) (*ingestionv1.IngestRawResponse, error) {
	r := s.Ingester.Raw(ctx, &wire.Request{
		Endpoint: wire.Endpoint(req.GetEndpoint()), Method: req.GetMethod(), //nolint:gosec // validated enum with the same numbers
		ContentType: req.GetContentType(), ContentEncoding: req.GetContentEncoding(), Authorization: req.GetAuthorization(),
		RawQuery: req.GetRawQuery(), ClientIP: req.GetClientIp(), Host: req.GetHost(), Body: req.GetBody(),
	})
	return &ingestionv1.IngestRawResponse{Status: int32(r.Status), ContentType: r.ContentType, Headers: r.Headers, Body: r.Body}, nil //nolint:gosec // an HTTP status
}

// ValidateProjectCredentials checks a project token, and the project secret when there is one.
func (s *Ingestion) ValidateProjectCredentials(ctx context.Context, req *ingestionv1.ValidateProjectCredentialsRequest) (*ingestionv1.ValidateProjectCredentialsResponse, error) {
	wrong := fault.New(fault.Unauthenticated, "WRONG_CREDENTIAL", "Invalid credentials")
	p, err := s.Registry.ByToken(ctx, req.GetProjectToken())
	if secret := req.GetApiSecret(); err == nil && secret != "" {
		var of *project.Project
		of, err = s.Registry.Authenticate(ctx, project.Credential{Username: secret})
		// A token passes for a Basic user as well, but it is no secret.
		if err == nil && (of.ID != p.ID || secret == p.Token) {
			return nil, wrong
		}
	}
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Unauthenticated) || fault.Is(err, fault.Denied) {
		err = wrong.Wrap(err)
	}
	return &ingestionv1.ValidateProjectCredentialsResponse{}, err
}

func (s *Ingestion) project(ctx context.Context, parent string) (*project.Project, error) {
	id, err := projectID(parent)
	if err != nil {
		return nil, err
	}
	return s.Registry.ByID(ctx, id)
}

func projectID(parent string) (int64, error) {
	ids, err := resource.IDs("parent", parent, "projects")
	if err != nil {
		return 0, err
	}
	return ids[0], nil
}

// ImportEvents takes typed events.
func (s *Ingestion) ImportEvents(ctx context.Context, req *ingestionv1.ImportEventsRequest) (*ingestionv1.ImportEventsResponse, error) {
	p, err := s.project(ctx, req.GetParent())
	if err != nil {
		return nil, err
	}
	var list []any
	var at []int32 // where each of list stands in the request
	var refused []*ingestionv1.FailedRecord
	for i, e := range req.GetEvents() {
		props, f := wireProperties(e)
		if f != nil {
			f.Index = int32(i) //nolint:gosec // at most 2000
			refused = append(refused, f)
			continue
		}
		list, at = append(list, map[string]any{"event": e.GetEvent(), "properties": props}), append(at, int32(i)) //nolint:gosec // at most 2000
	}
	if len(list) == 0 {
		return &ingestionv1.ImportEventsResponse{FailedRecords: refused}, nil
	}
	b, err := json.Marshal(list)
	if err != nil {
		return nil, err
	}
	res, failures, err := s.Ingester.Import(ctx, p, b)
	if err != nil {
		return nil, err
	}
	for _, f := range failures {
		field := f.Field
		if own, ok := typedFields[field]; ok {
			field = own
		}
		refused = append(refused, &ingestionv1.FailedRecord{Index: at[f.Index], Field: field, Message: f.Message})
	}
	slices.SortFunc(refused, func(a, b *ingestionv1.FailedRecord) int { return cmp.Compare(a.GetIndex(), b.GetIndex()) })
	return &ingestionv1.ImportEventsResponse{Imported: int32(res.Stored + res.Duplicates), Duplicates: int32(res.Duplicates), FailedRecords: refused}, nil //nolint:gosec // at most 2000
}

// typedFields are the fields of Event for the properties they are stored as.
var typedFields = map[string]string{"properties.time": "time", "properties.distinct_id": "distinct_id", "properties.$insert_id": "insert_id"}

// wireProperties makes the properties of an event as Mixpanel's wire has them.
func wireProperties(e *ingestionv1.Event) (map[string]any, *ingestionv1.FailedRecord) {
	props := e.GetProperties().AsMap()
	if props == nil {
		props = map[string]any{}
	}
	if text := e.GetPropertiesJson(); text != "" {
		if e.GetProperties() != nil {
			return nil, &ingestionv1.FailedRecord{Field: "properties_json", Message: "'properties_json' is invalid: give either properties or properties_json"}
		}
		raw := map[string]jsontext.Value{} // keeps the digits of numbers, refuses names that are repeated
		if err := jsonv2.Unmarshal([]byte(text), &raw); err != nil || raw == nil {
			return nil, &ingestionv1.FailedRecord{Field: "properties_json", Message: "'properties_json' is invalid: must be one JSON object that names each property once"}
		}
		for k, v := range raw {
			props[k] = json.RawMessage(v)
		}
	}
	if e.GetTime() != nil {
		props["time"] = e.GetTime().AsTime().UnixMilli()
		if e.GetTime().AsTime().Unix() < 31_536_000 { // small numbers mean seconds
			props["time"] = e.GetTime().AsTime().Unix()
		}
	}
	if e.GetDistinctId() != "" {
		props["distinct_id"] = e.GetDistinctId()
	}
	if e.GetInsertId() != "" {
		props["$insert_id"] = e.GetInsertId()
	}
	return props, nil
}

func failed(list []*event.Failure) []*ingestionv1.FailedRecord {
	out := make([]*ingestionv1.FailedRecord, len(list))
	for i, f := range list {
		out[i] = &ingestionv1.FailedRecord{Index: int32(f.Index), Field: f.Field, Message: f.Message} //nolint:gosec // at most 2000
	}
	return out
}

// UpdateProfiles applies typed profile operations.
func (s *Ingestion) UpdateProfiles(ctx context.Context, req *ingestionv1.UpdateProfilesRequest) (*ingestionv1.UpdateProfilesResponse, error) {
	p, err := s.project(ctx, req.GetParent())
	if err != nil {
		return nil, err
	}
	var updates []*profile.Update
	var failures []*event.Failure
	for i, u := range req.GetUpdates() {
		m := map[string]any{"$distinct_id": u.GetDistinctId(), "$ignore_time": u.GetIgnoreTime()}
		for op, v := range map[string]*structpb.Struct{"$set": u.GetSet(), "$set_once": u.GetSetOnce(), "$add": u.GetAdd(), "$append": u.GetAppend(), "$union": u.GetUnion(), "$remove": u.GetRemove()} {
			if v != nil {
				m[op] = v.AsMap()
			}
		}
		if len(u.GetUnset()) > 0 {
			m["$unset"] = u.GetUnset()
		}
		if u.GetDelete() {
			m["$delete"] = ""
		}
		b, err := json.Marshal(m)
		if err != nil {
			return nil, err
		}
		up, f := profile.DecodeOne(b, i)
		if f != nil {
			f.Field = "updates[" + strconv.Itoa(i) + "]." + f.Field
			failures = append(failures, f)
			continue
		}
		updates = append(updates, up)
	}
	n, f, err := s.Ingester.Update(ctx, p, updates)
	if err != nil {
		return nil, err
	}
	return &ingestionv1.UpdateProfilesResponse{Applied: int32(n), FailedRecords: failed(append(failures, f...))}, nil //nolint:gosec // at most 2000
}
