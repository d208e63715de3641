package gateway

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

// computedAt is the form of computed_at.
const computedAt = "2006-01-02T15:04:05.000000-07:00"

// engage serves the engage query in Mixpanel's shape
// (https://developer.mixpanel.com/reference/engage-query).
func (d *reader) engage(q *question) error {
	req, err := d.engageRequest(q)
	if err != nil {
		return err
	}
	stream, err := d.data.QueryProfiles(q.ctx, req)
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	q.w.Header().Set("Cache-Control", "no-store")
	out := &longBody{w: q.w, contentType: "application/json"}
	return out.finish(writePage(out, first, stream.Recv))
}

// writePage writes a page as its profiles come.
func writePage(out io.Writer, first *ingestionv1.QueryProfilesResponse, next func() (*ingestionv1.QueryProfilesResponse, error)) error {
	p := first.GetPage()
	if p == nil {
		return errors.New("the answer does not begin with a page")
	}
	_, err := fmt.Fprintf(out, `{"computed_at":%q,"page":%d,"page_size":%d,"session_id":%q,"status":"ok","total":%d,"results":[`,
		p.GetComputeTime().AsTime().Format(computedAt), p.GetPage(), p.GetPageSize(), p.GetSessionId(), p.GetTotal())
	separator := ""
	for m := first; err == nil; m, err = next() {
		for _, u := range m.GetProfiles() {
			id, err := json.Marshal(u.GetDistinctId())
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(out, `%s{"$distinct_id":%s,"$properties":%s}`, separator, id, u.GetPropertiesJson()); err != nil {
				return err
			}
			separator = ","
		}
	}
	if errors.Is(err, io.EOF) {
		_, err = io.WriteString(out, "]}\n")
	}
	return err
}

func (d *reader) engageRequest(q *question) (*ingestionv1.QueryProfilesRequest, error) {
	p := q.params
	for _, name := range []string{"behaviors", "as_of_timestamp"} {
		if p.Has(name) {
			return nil, bad("%s: is not supported; define a cohort and use filter_by_cohort", name)
		}
	}
	// selector is the older name of where.
	req := &ingestionv1.QueryProfilesRequest{Parent: q.project, SessionId: p.Get("session_id"), Where: cmp.Or(p.Get("where"), p.Get("selector")), GroupKey: p.Get("data_group_id")}
	page, err := q.number("page", 0, math.MaxInt32)
	if err != nil {
		return nil, err
	}
	size, err := q.number("page_size", 1, 1000)
	if err != nil {
		return nil, err
	}
	req.Page, req.PageSize = int32(page), int32(size) //nolint:gosec // within the bounds
	if req.DistinctIds, err = q.texts("distinct_ids"); err != nil {
		return nil, err
	}
	if p.Has("distinct_ids") && len(req.GetDistinctIds()) == 0 {
		return nil, bad("distinct_ids: must hold at least one id")
	}
	if id := p.Get("distinct_id"); id != "" {
		if len(req.GetDistinctIds()) > 0 {
			return nil, bad("distinct_id: does not go with distinct_ids")
		}
		req.DistinctIds = []string{id}
	}
	if req.OutputProperties, err = q.texts("output_properties"); err != nil {
		return nil, err
	}
	if p.Get("filter_by_cohort") != "" && req.GetSessionId() == "" {
		err = d.filterByCohort(q, req)
	}
	return req, err
}

// filterByCohort limits a query to who is in a cohort now. The members are found
// once, for the first page; the session has them for the others.
func (d *reader) filterByCohort(q *question, req *ingestionv1.QueryProfilesRequest) (err error) {
	var filter struct {
		ID json.RawMessage `json:"id"`
	}
	if json.Unmarshal([]byte(q.params.Get("filter_by_cohort")), &filter) != nil || !decimal.MatchString(strings.Trim(string(filter.ID), `"`)) {
		return bad(`filter_by_cohort: must be {"id": NUMBER}`)
	}
	if req.GetGroupKey() != "" {
		return bad("filter_by_cohort: does not go with data_group_id, a cohort has users")
	}
	if req.IncludeAllUsers, err = q.flag("include_all_users", true); err != nil {
		return err
	}
	set, err := d.cohorts.GetMemberSet(q.ctx, &cohortsyncv1.GetMemberSetRequest{Parent: q.project + "/cohorts/" + strings.Trim(string(filter.ID), `"`)})
	if err != nil {
		return err
	}
	req.Users = &ingestionv1.UserSet{Roaring: set.GetRoaring(), Count: set.GetCount()}
	return nil
}

// listedCohort is a cohort as Mixpanel lists it.
type listedCohort struct {
	ID          int64  `json:"id"`
	Name        string `json:"name"`
	Description string `json:"description"`
	Count       int64  `json:"count"`
	IsVisible   int    `json:"is_visible"`
	Created     string `json:"created"`
	ProjectID   int64  `json:"project_id"`
}

// listCohorts serves the list of cohorts
// (https://developer.mixpanel.com/reference/cohorts-list). The count is of all
// users, as total is of a query with filter_by_cohort: that of the last
// evaluation, or one made now for a cohort that never was evaluated.
func (d *reader) listCohorts(q *question) error {
	project, err := strconv.ParseInt(strings.TrimPrefix(q.project, "projects/"), 10, 64)
	if err != nil {
		return err
	}
	list := []listedCohort{}
	for token := ""; ; {
		page, err := d.cohorts.ListCohorts(q.ctx, &cohortsyncv1.ListCohortsRequest{Parent: q.project, PageSize: 1000, PageToken: token})
		if err != nil {
			return err
		}
		for _, c := range page.GetCohorts() {
			id, err := strconv.ParseInt(c.GetName()[strings.LastIndexByte(c.GetName(), '/')+1:], 10, 64)
			if err != nil {
				return err
			}
			count := c.GetLastEvaluation().GetUsers()
			if c.GetLastEvaluation() == nil {
				set, err := d.cohorts.GetMemberSet(q.ctx, &cohortsyncv1.GetMemberSetRequest{Parent: c.GetName()})
				if status.Code(err) == codes.NotFound {
					continue // it was deleted meanwhile
				}
				if err != nil {
					return err
				}
				count = int64(set.GetCount()) //nolint:gosec // a count
			}
			list = append(list, listedCohort{id, c.GetDisplayName(), c.GetDescription(), count, 1, c.GetCreateTime().AsTime().Format(time.DateTime), project})
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	q.w.Header().Set("Content-Type", "application/json")
	q.w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(q.w).Encode(list) // the client went away
	return nil
}
