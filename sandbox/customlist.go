package sandbox

import (
	"bufio"
	"crypto/rand"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

// upload is a presigned URL and the file put there. Files are kept on disk, a
// list may be large; they have no name there, so that a process that is killed
// leaves nothing behind.
type upload struct {
	token   string
	file    *os.File
	expires time.Time
	size    int64
}

// drop forgets the file.
func (u *upload) drop() {
	if u.file != nil {
		_ = u.file.Close() // nobody reads it any more
		u.file = nil
	}
}

// keptFiles bounds the files an account has open; the oldest URL goes first.
const keptFiles = 100

func (a *account) boundFiles() {
	open := 0
	var oldest *upload
	for _, u := range a.uploads {
		if u.file == nil {
			continue
		}
		if open++; oldest == nil || u.expires.Before(oldest.expires) {
			oldest = u
		}
	}
	if open > keptFiles {
		oldest.drop()
		delete(a.uploads, oldest.token)
	}
}

// nameless makes a temporary file and takes its name away.
func nameless() (*os.File, error) {
	f, err := os.CreateTemp("", "cohortbridge-sandbox-*.csv")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// mail is a message CleverTap would have sent about a list.
type mail struct {
	Time    time.Time `json:"time"`
	To      string    `json:"to"`
	Subject string    `json:"subject"`
}

// urlLife is how long a presigned URL works.
const urlLife = 24 * time.Hour

// listURL is step 1 (https://developer.clevertap.com/docs/custom-list-endpoints).
func (s *Sandbox) listURL(a *account, w http.ResponseWriter, r *http.Request) {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	u := &upload{token: hex.EncodeToString(b), expires: s.now().Add(urlLife)}
	a.mu.Lock()
	a.uploads[u.token] = u
	a.mu.Unlock()
	url := "http://" + r.Host + "/s3/" + u.token + "?account=" + a.id
	writeJSON(w, 200, map[string]any{"presignedS3URL": url, "expiry": u.expires.Format("2 January, 03:04 PM"), "status": "success", "code": 200})
}

// putList is step 2, as S3 answers it. S3 refuses chunked transfers.
func (s *Sandbox) putList(w http.ResponseWriter, r *http.Request) {
	deny := func(code int, name string) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(code)
		_, _ = io.WriteString(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>`+name+`</Code></Error>`) // the client went away
	}
	a := s.accounts[r.URL.Query().Get("account")]
	if a == nil {
		deny(403, "AccessDenied")
		return
	}
	a.mu.Lock()
	u := a.uploads[r.PathValue("token")]
	a.mu.Unlock()
	if u == nil || s.now().After(u.expires) {
		deny(403, "AccessDenied")
		return
	}
	if r.ContentLength < 0 {
		deny(411, "MissingContentLength")
		return
	}
	f, err := nameless()
	if err != nil {
		deny(500, "InternalError")
		return
	}
	n, err := io.Copy(f, r.Body)
	if err != nil {
		_ = f.Close() // half a file is of no use
		deny(400, "IncompleteBody")
		return
	}
	a.mu.Lock()
	u.drop() // replaced by this upload
	u.file, u.size = f, n
	a.boundFiles()
	a.mu.Unlock()
	w.WriteHeader(http.StatusOK)
}

// listCompleted is step 3.
func (s *Sandbox) listCompleted(a *account, w http.ResponseWriter, r *http.Request) {
	var in struct {
		Name, Email, Filename, Creator, URL string
		Replace                             bool
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		fail(w, 400, "Malformed request")
		return
	}
	for field, v := range map[string]string{"name": in.Name, "filename": in.Filename, "creator": in.Creator, "url": in.URL} {
		if v == "" {
			fail(w, 400, field+" is mandatory")
			return
		}
	}
	if !emailPattern.MatchString(in.Email) {
		fail(w, 401, "Email id is either not in the right format or does not belong to a valid admin")
		return
	}
	_, token, _ := strings.Cut(in.URL, "/s3/")
	token, _, _ = strings.Cut(token, "?")
	a.mu.Lock()
	defer a.mu.Unlock()
	u := a.uploads[token]
	if u == nil || u.file == nil {
		fail(w, 400, "No file was uploaded to this url")
		return
	}
	if _, exists := a.segments[string(listSegment)+"\x00"+in.Name]; exists && !in.Replace {
		fail(w, 409, "duplicate_name")
		return
	}
	seg := a.segmentFor(listSegment, in.Name, in.Name)
	k := s.knobs.get()
	if k.ListDelayMS == 0 {
		s.processList(a, seg, u, in.Email, k.ListFails)
	} else {
		s.pending.Go(func() {
			t := time.NewTimer(time.Duration(k.ListDelayMS) * time.Millisecond)
			defer t.Stop()
			select {
			case <-t.C:
			case <-s.stop:
				return
			}
			a.mu.Lock()
			defer a.mu.Unlock()
			s.processList(a, seg, u, in.Email, k.ListFails)
		})
	}
	writeJSON(w, 200, map[string]any{"Segment ID": seg.ID, "status": "success", "code": 200})
}

// processList reads the file and swaps the segment's content. Users CleverTap
// doesn't know are ignored. The account's mu is held.
func (s *Sandbox) processList(a *account, seg *segment, u *upload, email string, fails bool) {
	members, err := readList(u, func(id string) bool { return a.profiles[id] != nil })
	if fails && err == nil {
		err = errors.New("knob list_fails")
	}
	subject := "Segment " + seg.Name + " is ready"
	if err != nil {
		subject = "File upload failed"
		a.logError(s.now(), 0, "custom list", "file upload failed")
	} else {
		seg.Members, seg.Updated = members, s.now()
	}
	a.outbox = append(a.outbox, mail{s.now(), email, subject})
}

func readList(u *upload, known func(string) bool) (map[string]struct{}, error) {
	if u.file == nil {
		return nil, errors.New("the file is gone")
	}
	r := csv.NewReader(bufio.NewReaderSize(io.NewSectionReader(u.file, 0, u.size), 1<<16))
	r.FieldsPerRecord, r.ReuseRecord = 2, true
	head, err := r.Read()
	if err != nil || !strings.EqualFold(head[0], "Type") || !strings.EqualFold(head[1], "Identity") {
		return nil, errors.New("header must be Type,Identity")
	}
	members := map[string]struct{}{}
	for {
		row, err := r.Read()
		if errors.Is(err, io.EOF) {
			return members, nil
		}
		if err != nil {
			return nil, err
		}
		if row[0] == "i" && known(row[1]) {
			members[strings.Clone(row[1])] = struct{}{}
		}
	}
}
