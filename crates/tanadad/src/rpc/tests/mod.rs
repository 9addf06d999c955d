mod calls;
mod coverage;
mod events;
mod logins;
mod settings;
mod tasks;
