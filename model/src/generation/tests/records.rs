//! Whoever is told the rows of a generation has those that its roots are of.

use std::sync::Mutex;

use lockstep_protocol::trace::root_of_rows;

use super::*;
use crate::embed::read_i32;

/// Rows of layers 1 and on, and the tokens of their positions.
type Told = (Vec<Vec<i32>>, Vec<u32>);

/// Keeps what it is told, and computes what it is not told again.
struct Rows {
    model: Model,
    layers: Vec<Vec<i32>>,
    told: Arc<Mutex<Option<Told>>>,
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows").finish_non_exhaustive()
    }
}

/// What layers 1 to L put out over these tokens.
fn rows_of(model: &Model, tokens: &[u32]) -> Vec<Vec<i32>> {
    let program = &model.program;
    let mut executor = Reference.load(Arc::clone(program), Arc::clone(&model.params)).unwrap();
    executor.begin(&Batch::single(tokens.to_vec())).unwrap();
    let mut layers = Vec::new();
    for (index, layer) in program.layers.iter().enumerate().take(program.layers.len() - 1) {
        executor.run_layer(index).unwrap();
        layers.push(read_i32(&mut *executor, layer.output).unwrap());
    }
    layers.split_off(1)
}

impl Recorder for Rows {
    fn reuse(&mut self, tokens: &[u32]) {
        assert!(self.layers.iter().all(Vec::is_empty), "it comes first");
        self.layers = rows_of(&self.model, tokens);
    }

    fn push(&mut self, layer: usize, rows: &[i32]) {
        self.layers[layer - 1].extend_from_slice(rows);
    }

    fn truncate(&mut self, positions: usize) {
        let cols = self.model.program.tensor(self.model.program.layers[1].output).cols as usize;
        assert!(self.layers.iter().all(|rows| rows.len() > positions * cols), "there is something to forget");
        self.layers.iter_mut().for_each(|rows| rows.truncate(positions * cols));
    }

    fn finish(self: Box<Self>, tokens: &[u32]) {
        let before = self.told.lock().unwrap().replace((self.layers, tokens.to_vec()));
        assert!(before.is_none(), "it ends once");
    }
}

fn recorder(model: &Model) -> (Box<Rows>, Arc<Mutex<Option<Told>>>) {
    let (told, layers) = (Arc::default(), vec![Vec::new(); model.program.layers.len() - 2]);
    (Box::new(Rows { model: model.clone(), layers, told: Arc::clone(&told) }), told)
}

/// That the rows give every root of layers 1 to L of the run, and are of its tokens.
fn are_of(told: &Told, request: &Request, run: &Run) {
    let (layers, tokens) = told;
    let words = run.words.iter().map(|word| split_word(*word).0);
    let expected: Vec<u32> = request.prompt.iter().copied().chain(words).collect();
    assert_eq!(tokens[..], expected[..expected.len() - 1], "the last word is no input");
    let mut roots = run.roots.chunks_exact(layers.len() + 1);
    for point in request.prompt.len() - 1..tokens.len() {
        let of_point = roots.next().unwrap();
        for (rows, root) in layers.iter().zip(of_point) {
            let cols = rows.len() / tokens.len();
            assert_eq!(root_of_rows(&rows[..(point + 1) * cols], cols), *root);
        }
    }
    assert!(roots.next().is_none());
}

#[test]
fn whoever_is_told_the_rows_has_what_the_roots_are_of_whatever_the_schedule() {
    let model = decoder(false);
    let cpu = Cpu::new(None, 1).unwrap();
    let plain = |request: &Request| expected(&model, &cpu, request).words;
    let mut requests = vec![request(600, 3, 1), request(600, 5, 1), request(3, 40, 2), request(250, 12, 3)];
    requests[1].prompt[599] = 5;
    // An audit of an honest run, and of one whose words are wrong somewhere.
    let (mut right, mut wrong) = (request(257, 9, 4), request(250, 12, 5));
    right.hint = plain(&right);
    wrong.hint = plain(&wrong);
    wrong.hint[7] = (wrong.hint[7] + 1) % VOCAB as u32;
    requests.extend([right, wrong]);
    for pass_tokens in [5, 64, 700] {
        let mut generator = generator(&model, &cpu, Limits { pass_tokens, ..roomy() });
        // Twice: the second time every long prompt begins like one that was there.
        for round in 0..2 {
            let mut all = Vec::new();
            for request in &requests {
                let (recorder, told) = recorder(&model);
                all.push((generator.submit_recorded(request.clone(), Some(recorder)).unwrap(), request, told));
            }
            let mut runs = BTreeMap::new();
            let mut note = |id, event| {
                if let Event::Done(run) = event {
                    let told = &all.iter().find(|(of, ..)| *of == id).unwrap().2;
                    assert!(told.lock().unwrap().is_some(), "told before the end is said");
                    runs.insert(id, run);
                }
            };
            while generator.step(&mut note).unwrap() {}
            for (id, request, told) in &all {
                are_of(told.lock().unwrap().as_ref().unwrap(), request, &runs[id]);
            }
            assert!(round == 0 || runs.values().any(|run| run.reused_positions > 0));
        }
    }
}

#[test]
fn whoever_is_told_the_rows_hears_of_a_cancel() {
    let model = decoder(false);
    let cpu = Cpu::new(None, 1).unwrap();
    let mut generator = generator(&model, &cpu, roomy());
    let (recorder, told) = recorder(&model);
    let id = generator.submit_recorded(request(20, 30, 1), Some(recorder)).unwrap();
    for _ in 0..5 {
        generator.step(&mut |_, _| {}).unwrap();
    }
    generator.cancel(id);
    let (layers, tokens) = told.lock().unwrap().take().unwrap();
    assert_eq!(tokens.len(), 24, "the prompt, and a position for each word but the last");
    assert_eq!(layers, rows_of(&model, &tokens));
}
